// Loads the library and the model, verifies every file before it is used, and computes the logits of a text.

import { encode } from "./tokens.js";

const VENDOR = "vendor/"; // a copy of the library beside the page, preferred

/**
 * Returns the classifier. Its `logits(text, pair)` gives `raw` (the logits, a Float32Array), whether the text was
 * `cut`, and whether all of it is `unknown` to the tokenizer.
 *
 * `settings` is page.json; `onProgress(loaded, total)` counts bytes. Throws an Error with a message for the visitor.
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
  const encoding = encode(tokenizer, text, pair, maxLength);
  const tensor = (numbers) => new Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  const output = await model({
    input_ids: tensor(encoding.ids),
    attention_mask: tensor(encoding.ids.map(() => 1)),
    token_type_ids: tensor(encoding.types),
  });
  return { raw: output.logits.data, cut: encoding.cut, unknown: encoding.unknown };
}

/** transformers.js with its WebAssembly, from `vendor/` if that exists, else from its URL. */
async function loadLibrary(files, download) {
  const isLocal = await exists(VENDOR + files[0].name);
  const [script, factory, wasm] = await Promise.all(
    files.map((file) => download(file, isLocal ? VENDOR + file.name : file.url, isLocal ? "no-cache" : "default")),
  );
  const library = await import(scriptUrl(script));
  const { env } = library;
  env.backends.onnx.wasm.wasmPaths = { mjs: scriptUrl(factory) };
  env.backends.onnx.wasm.wasmBinary = wasm.buffer;
  env.backends.onnx.wasm.numThreads = 1; // more need headers that static hosts rarely send
  Object.assign(env, { useBrowserCache: false, useWasmCache: false });
  return library;
}

/** Returns the model's files by name; if the library fetched them itself, it would hide the error of a file. */
async function loadFiles(files, download) {
  const contents = await Promise.all(files.map((file) => download(file, file.name, "no-cache")));
  return new Map(files.map((file, i) => [`./${file.name}`, contents[i]]));
}

async function loadModel({ env, AutoTokenizer, ...kinds }, settings, files) {
  const isSupported = kinds.AutoModelForSequenceClassification.supports(settings.model_type);
  const kind = isSupported ? kinds.AutoModelForSequenceClassification : kinds.AutoModel; // the bare session
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

async function exists(url) {
  const answer = await fetch(url, { method: "HEAD", cache: "no-cache" }).catch(() => null);
  return Boolean(answer?.ok) && !answer.headers.get("content-type")?.startsWith("text/html");
}

function scriptUrl(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
}

/**
 * Returns a function that fetches a file of page.json, verifies it, and adds its bytes to the progress.
 * If one download fails, the others are aborted.
 */
function downloads(settings, onProgress) {
  const loaded = new Map();
  const total = [...settings.library.files, ...settings.files].reduce((sum, { bytes }) => sum + bytes, 0);
  const controller = new AbortController();
  const checked = async (file, url, cache) => {
    const bytes = await fetchFile(file, url, { cache, signal: controller.signal }, (count) => {
      loaded.set(file.name, count);
      onProgress([...loaded.values()].reduce((a, b) => a + b), total);
    });
    if ((await sha384(bytes)) === file.integrity) return bytes;
    throw new Error(
      `${file.name} is not the file that this page was made with (its checksum differs), so it is not used.`,
    );
  };
  return (...request) =>
    checked(...request).catch((error) => {
      controller.abort();
      throw error;
    });
}

/** Returns the bytes of a file; a file that is longer than expected is not read to its end. */
async function fetchFile(file, url, options, onBytes) {
  const loadError = (reason) => new Error(`${file.name} could not be loaded (${reason}); load the page again.`);
  const response = await fetch(url, options).catch(() => {
    throw loadError("no connection");
  });
  if (!response.ok) throw loadError(`the server answered ${response.status}`);
  const bytes = new Uint8Array(file.bytes);
  const reader = response.body.getReader();
  let count = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw loadError("the connection broke");
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
