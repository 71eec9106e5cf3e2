// The page: loads the classifier and shows its prediction. Texts from outside are set as text, never as HTML.

import { loadClassifier } from "./classifier.js";
import { MULTI, REGRESSION, decide, threshold } from "./decision.js";

const MANY = 12; // labels; if there are more, only the most likely are shown
const get = (id) => document.getElementById(id);

/** The settings and the classifier, once they are loaded; undefined if that failed. */
export const ready = start().catch(showError);

get("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!get("classify").disabled) await answer(await ready).catch(showError);
});

async function start() {
  get("unserved").hidden = true;
  const settings = await readSettings();
  show(settings);
  get("progress").hidden = false;
  const classifier = await loadClassifier(settings, showProgress);
  await classifier.logits("a", settings.text_pair ? "a" : null); // so that a model that cannot run fails now
  forbidRequests();
  get("progress").hidden = true;
  get("status").textContent = "Ready.";
  get("classify").disabled = false;
  return { settings, classifier };
}

async function readSettings() {
  const response = await fetch("page.json", { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Error("page.json could not be loaded; put the whole folder on the server.");
  return response.json();
}

/** Makes the browser refuse every further request of this page. */
function forbidRequests() {
  const policy = document.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = "default-src 'none'; style-src 'self'";
  document.head.append(policy);
}

async function answer({ settings, classifier }) {
  const text = get("text").value;
  const pair = settings.text_pair ? get("pair").value : null;
  get("error").hidden = true;
  if (!text.trim() || (pair !== null && !pair.trim())) {
    throw new Error(`The ${text.trim() ? "second text" : "text"} is empty; type a sentence to classify.`);
  }
  get("classify").disabled = true;
  get("status").textContent = "Predicting…";
  await new Promise((painted) => setTimeout(painted, 30)); // the page is blocked while the model computes
  try {
    const begun = performance.now();
    const { raw, ...encoding } = await classifier.logits(text, pair);
    showAnswer(settings, decide(raw, settings.problem_type, settings.decision), encoding);
    get("took").textContent = `${Math.max(1, Math.round(performance.now() - begun))} ms on this machine`;
  } finally {
    get("classify").disabled = false;
    get("status").textContent = "";
  }
}

function showAnswer(settings, prediction, { cut, unknown }) {
  get("answer").textContent = answerText(settings, prediction);
  get("answer").classList.toggle("none", prediction.abstains);
  const notes = [];
  if (prediction.abstains) {
    notes.push(`Confidence ${share(prediction.confidence)} is below ${settings.decision.abstain_below}.`);
  }
  if (unknown) notes.push("The tokenizer does not know any of these characters, so the prediction is not reliable.");
  if (cut) notes.push(`Only the first ${settings.max_length} tokens were read.`);
  get("note").textContent = notes.join(" ");
  get("note").hidden = !notes.length;
  get("shares").replaceChildren(...bars(settings, prediction));
  get("result").hidden = false;
}

function answerText(settings, prediction) {
  if (prediction.abstains) return "No answer";
  if (settings.problem_type === REGRESSION) return String(Number(prediction.value.toPrecision(4)));
  return prediction.chosen.map((i) => settings.labels[i]).join(", ") || "no label";
}

/** Returns one row per label, in the order of the labels; if there are many, the most likely first. */
function bars(settings, prediction) {
  const order = prediction.shares.map((_, i) => i);
  if (order.length > MANY) order.sort((a, b) => prediction.shares[b] - prediction.shares[a]).splice(MANY);
  return order.map((i) => {
    const row = make("li", prediction.chosen.includes(i) && !prediction.abstains ? "chosen" : "");
    const bar = make("i");
    bar.style.setProperty("--share", prediction.shares[i]);
    if (settings.problem_type === MULTI) bar.style.setProperty("--from", threshold(i, settings.decision));
    row.append(make("span", "", settings.labels[i]), bar, make("b", "", share(prediction.shares[i])));
    return row;
  });
}

function show(settings) {
  get("second").hidden = !settings.text_pair;
  get("pair").required = settings.text_pair;
  if (settings.problem_type === REGRESSION) get("classify").textContent = "Predict";
  for (const id of ["text", "pair"]) get(id).addEventListener("keydown", submitOnEnter);
  get("example-list").replaceChildren(...settings.examples.map(example));
  get("examples").hidden = !settings.examples.length;
  const facts = settings.about.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  get("about").replaceChildren(...facts);
}

function example({ text, pair }) {
  const item = make("li");
  const button = make("button", "example", pair === null ? text : `${text} / ${pair}`);
  button.type = "button";
  button.addEventListener("click", () => {
    get("text").value = text;
    get("pair").value = pair ?? "";
    get("form").requestSubmit();
  });
  item.append(button);
  return item;
}

function submitOnEnter(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) get("form").requestSubmit();
}

function showProgress(loaded, total) {
  const size = (bytes) => (bytes / 1e6).toFixed(1);
  get("progress").value = loaded / total;
  get("status").textContent =
    loaded < total ? `Loading: ${size(loaded)} of ${size(total)} MB` : "Starting the model…";
}

function showError(error) {
  get("progress").hidden = true;
  get("status").textContent = "";
  get("error").textContent = error.message;
  get("error").hidden = false;
}

function share(value) {
  return value.toFixed(3);
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
