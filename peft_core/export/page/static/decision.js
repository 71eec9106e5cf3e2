// How raw outputs become an answer: the rule of peft_core/inference/decision.py, in float64 as there.

export const SINGLE = "single_label_classification";
export const MULTI = "multi_label_classification";
export const REGRESSION = "regression";
const THRESHOLD = 0.5; // a label of several is given from this probability on

/** Calibrated probabilities, one a label; of a number the number itself. */
export function probabilities(logits, task, decision) {
  const raw = Array.from(logits);
  if (task === REGRESSION) return raw;
  const scaled = raw.map((value) => value / decision.temperature);
  if (task === MULTI) return scaled.map((value) => 1 / (1 + Math.exp(-value)));
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const powers = scaled.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

/**
 * What one text's raw outputs say: `chosen` (indices of labels), `shares` (a probability a label),
 * `confidence` from 0 to 1, and whether it `abstains`; of a number `value`.
 */
export function decide(logits, task, decision) {
  const shares = probabilities(logits, task, decision);
  if (task === REGRESSION) {
    return { chosen: [], shares: [], confidence: 1, abstains: 1 < decision.abstain_below, value: shares[0] };
  }
  const given = task === MULTI ? yesses(shares, decision) : [best(shares, decision)];
  const confidence =
    task === MULTI
      ? shares.map((share, i) => (given.includes(i) ? share : 1 - share)).reduce((a, b) => Math.min(a, b))
      : shares[given[0]];
  return { chosen: given, shares, confidence, abstains: confidence < decision.abstain_below };
}

/** From which probability on a label of several is given. */
export function threshold(index, decision) {
  return decision.thresholds[index] ?? THRESHOLD;
}

function yesses(shares, decision) {
  return shares.flatMap((share, i) => (share >= threshold(i, decision) ? [i] : []));
}

function best(shares, decision) {
  const parts = shares.map((share, i) => share / (decision.thresholds[i] ?? 1));
  return parts.indexOf(parts.reduce((a, b) => Math.max(a, b)));
}
