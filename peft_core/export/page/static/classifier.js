// The library and the model, every file checked before it is used, and texts to raw outputs.

import { encode } from "./tokens.js";

const VENDOR = "vendor/"; // a copy of the library beside the page, used first

/**
 * What the page asks: `logits(text, pair)` gives `raw` (Float32Array), and how the text was read: whether it
 * was `cut`, and whether all of it is `unknown` to the tokenizer.
 *
 * `settings` is page.json; `onProgress(loaded, total)` counts bytes. Throws an Error that a person can read.
 */
export async function loadClassifier(settings, onProgress) {
  if (!globalThis.crypto?.subtle) {
    throw new Error("A browser checks files on https or localhost only; open the page at such an address.");
  }
  const download = downloads(settings, onProgress);
  const [library, files] = await Promise.all([
    loadLibrary(settings.library.files, download),
    loadFiles(settings.files, download),
  ]);
  const { tokenizer, model } = await loadModel(library, settings, files);
  return { logits: (text, pair) => logits(library, tokenizer, model, text, pair, settings.max_length) };
}

async function logits({ Tensor }, tokenizer, model, text, pair, maxLength) {
  const found = encode(tokenizer, text, pair, maxLength);
  const tensor = (numbers) => new Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  const output = await model({
    input_ids: tensor(found.ids),
    attention_mask: tensor(found.ids.map(() => 1)),
    token_type_ids: tensor(found.types),
  });
  return { raw: output.logits.data, cut: found.cut, unknown: found.unknown };
}

/** transformers.js with its WebAssembly, from `vendor/` where there is one, else from the address it names. */
async function loadLibrary(files, download) {
  const near = await isThere(VENDOR + files[0].name);
  const [script, factory, wasm] = await Promise.all(
    files.map((file) => download(file, near ? VENDOR + file.name : file.url, near ? "no-cache" : "default")),
  );
  const library = await import(scriptUrl(script));
  const { env } = library;
  env.backends.onnx.wasm.wasmPaths = { mjs: scriptUrl(factory) };
  env.backends.onnx.wasm.wasmBinary = wasm.buffer;
  env.backends.onnx.wasm.numThreads = 1; // more need headers that a static host seldom sends
  Object.assign(env, { useBrowserCache: false, useWasmCache: false });
  return library;
}

/** The model's files by name; the library asks for them below, and would hide what is wrong with one. */
async function loadFiles(files, download) {
  const found = await Promise.all(files.map((file) => download(file, file.name, "no-cache")));
  return new Map(files.map((file, i) => [`./${file.name}`, found[i]]));
}

async function loadModel({ env, AutoTokenizer, ...kinds }, settings, files) {
  const named = kinds.AutoModelForSequenceClassification.supports(settings.model_type);
  const kind = named ? kinds.AutoModelForSequenceClassification : kinds.AutoModel; // the bare session
  Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: "./" });
  env.fetch = async (url) => new Response(files.get(url), { status: files.has(url) ? 200 : 404 });
  const options = { dtype: settings.precision === "int8" ? "q8" : "fp32", device: "wasm" };
  const [tokenizer, model] = await Promise.all([
    AutoTokenizer.from_pretrained("model"),
    kind.from_pretrained("model", options),
  ]);
  files.clear();
  return { tokenizer, model };
}

async function isThere(url) {
  const answer = await fetch(url, { method: "HEAD", cache: "no-cache" }).catch(() => null);
  return Boolean(answer?.ok) && !answer.headers.get("content-type")?.startsWith("text/html");
}

function scriptUrl(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
}

/**
 * A function that fetches a file of page.json, checks it, and counts its bytes towards all that is needed.
 * Where one fails, the others stop.
 */
function downloads(settings, onProgress) {
  const loaded = new Map();
  const total = [...settings.library.files, ...settings.files].reduce((sum, { bytes }) => sum + bytes, 0);
  const all = new AbortController();
  const checked = async (file, url, cache) => {
    const bytes = await fetched(file, url, { cache, signal: all.signal }, (count) => {
      loaded.set(file.name, count);
      onProgress([...loaded.values()].reduce((a, b) => a + b), total);
    });
    if ((await sha384(bytes)) === file.integrity) return bytes;
    throw new Error(
      `${file.name} is not the file that this page was made with (its checksum differs), so it is not used.`,
    );
  };
  return (...asked) =>
    checked(...asked).catch((error) => {
      all.abort();
      throw error;
    });
}

/** The bytes of a file; what is longer than it should be is not read to its end. */
async function fetched(file, url, how, onBytes) {
  const lost = (why) => new Error(`${file.name} could not be loaded (${why}); load the page again.`);
  const response = await fetch(url, how).catch(() => {
    throw lost("no connection");
  });
  if (!response.ok) throw lost(`the server answered ${response.status}`);
  const bytes = new Uint8Array(file.bytes);
  const reader = response.body.getReader();
  let count = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw lost("the connection broke");
    });
    if (done) return bytes.subarray(0, count);
    if (count + value.length > bytes.length) {
      await reader.cancel();
      return value; // its checksum differs
    }
    bytes.set(value, count);
    count += value.length;
    onBytes(count);
  }
}

async function sha384(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-384", bytes));
  return `sha384-${btoa(String.fromCharCode(...digest))}`;
}
