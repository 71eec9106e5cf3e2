// The page: loads the classifier, and shows what it says of a text. Whatever is not ours is set as text.

import { loadClassifier } from "./classifier.js";
import { MULTI, REGRESSION, decide, threshold } from "./decision.js";

const MANY = 12; // labels: of more only the most likely are shown
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
  await classifier.logits("a", settings.text_pair ? "a" : null); // a model that cannot run says so now
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

/** From here on the browser itself refuses every request of this page. */
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
  get("status").textContent = "Reading…";
  await new Promise((painted) => setTimeout(painted, 30)); // the model holds the page while it computes
  try {
    const begun = performance.now();
    const { raw, ...read } = await classifier.logits(text, pair);
    showAnswer(settings, decide(raw, settings.problem_type, settings.decision), read);
    get("took").textContent = `${Math.max(1, Math.round(performance.now() - begun))} ms on this machine`;
  } finally {
    get("classify").disabled = false;
    get("status").textContent = "";
  }
}

function showAnswer(settings, found, { cut, unknown }) {
  get("answer").textContent = answerWords(settings, found);
  get("answer").classList.toggle("none", found.abstains);
  const notes = [];
  if (found.abstains) notes.push(`Confidence ${share(found.confidence)} is below ${settings.decision.abstain_below}.`);
  if (unknown) notes.push("The tokenizer knows none of these characters, so the answer means little.");
  if (cut) notes.push(`Only the first ${settings.max_length} tokens were read.`);
  get("note").textContent = notes.join(" ");
  get("note").hidden = !notes.length;
  get("shares").replaceChildren(...bars(settings, found));
  get("result").hidden = false;
}

function answerWords(settings, found) {
  if (found.abstains) return "No answer";
  if (settings.problem_type === REGRESSION) return String(Number(found.value.toPrecision(4)));
  return found.chosen.map((i) => settings.labels[i]).join(", ") || "no label";
}

/** One row a label, in the order of the labels; of many the most likely first. */
function bars(settings, found) {
  const order = found.shares.map((_, i) => i);
  if (order.length > MANY) order.sort((a, b) => found.shares[b] - found.shares[a]).splice(MANY);
  return order.map((i) => {
    const row = make("li", found.chosen.includes(i) && !found.abstains ? "chosen" : "");
    const bar = make("i");
    bar.style.setProperty("--share", found.shares[i]);
    if (settings.problem_type === MULTI) bar.style.setProperty("--from", threshold(i, settings.decision));
    row.append(make("span", "", settings.labels[i]), bar, make("b", "", share(found.shares[i])));
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
