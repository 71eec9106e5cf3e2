// How logits become an answer: the decision rule of peft_core/inference/decision.py, in float64 as there.

export const SINGLE = "single_label_classification";
export const MULTI = "multi_label_classification";
export const REGRESSION = "regression";
const THRESHOLD = 0.5; // multi-label: a label is chosen from this probability on

/** Returns calibrated probabilities, one per label; for a regression the number itself. */
export function probabilities(logits, problemType, decision) {
  const raw = Array.from(logits);
  if (problemType === REGRESSION) return raw;
  const scaled = raw.map((value) => value / decision.temperature);
  if (problemType === MULTI) return scaled.map((value) => 1 / (1 + Math.exp(-value)));
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const powers = scaled.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

/**
 * Returns the answer for the logits of one text: `chosen` (indices of labels), `shares` (a probability per label),
 * `confidence` from 0 to 1, and whether it `abstains`; for a regression `value`.
 */
export function decide(logits, problemType, decision) {
  const shares = probabilities(logits, problemType, decision);
  if (problemType === REGRESSION) {
    return { chosen: [], shares: [], confidence: 1, abstains: 1 < decision.abstain_below, value: shares[0] };
  }
  const chosen = problemType === MULTI ? atLeastThreshold(shares, decision) : [best(shares, decision)];
  const confidence =
    problemType === MULTI
      ? shares.map((share, i) => (chosen.includes(i) ? share : 1 - share)).reduce((a, b) => Math.min(a, b))
      : shares[chosen[0]];
  return { chosen, shares, confidence, abstains: confidence < decision.abstain_below };
}

/** Returns the probability from which on a label is chosen (multi-label). */
export function threshold(index, decision) {
  return decision.thresholds[index] ?? THRESHOLD;
}

function atLeastThreshold(shares, decision) {
  return shares.flatMap((share, i) => (share >= threshold(i, decision) ? [i] : []));
}

function best(shares, decision) {
  const parts = shares.map((share, i) => share / (decision.thresholds[i] ?? 1));
  return parts.indexOf(parts.reduce((a, b) => Math.max(a, b)));
}
