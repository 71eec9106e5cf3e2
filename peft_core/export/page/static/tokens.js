// Texts to token ids, truncated as the Python tokenizers truncate them.

const CHARACTERS_PER_TOKEN = 50; // as in peft_core/data/labelled.py: a text is cut here before it is tokenized

/**
 * Returns `ids` and `types` (numbers, one per token), whether something was `cut`, and whether all is `unknown`.
 *
 * The library itself would cut off the end of a long text together with the closing special token. So a long
 * text is truncated here: the longer side first, without removing special tokens.
 */
export function encode(tokenizer, text, pair, maxLength) {
  const sides = pair === null ? [text] : [text, pair];
  const short = sides.map((side) => cut(side, maxLength));
  const whole = tokens(tokenizer, short);
  const long = whole.ids.length > maxLength;
  const encoding = long ? truncate(tokenizer, short, maxLength) : whole;
  const cutOff = long || short.some((side, i) => side !== sides[i]);
  return { ...encoding, cut: cutOff, unknown: areUnknown(tokenizer, whole.ids) };
}

function areUnknown(tokenizer, ids) {
  const unknown = tokenizer.unk_token_id;
  const words = ids.filter((id) => id === unknown || !tokenizer.all_special_ids.includes(id));
  return words.length > 0 && words.every((id) => id === unknown);
}

function cut(text, maxLength) {
  const most = Math.max(10000, CHARACTERS_PER_TOKEN * maxLength);
  return text.length <= most ? text : Array.from(text).slice(0, most).join("");
}

function tokens(tokenizer, [text, pair = null], special = true) {
  const options = { text_pair: pair, add_special_tokens: special, return_tensor: false };
  const encoding = tokenizer(text, { ...options, return_token_type_ids: true });
  return { ids: encoding.input_ids, types: encoding.token_type_ids ?? encoding.input_ids.map(() => 0) };
}

/** Truncates the sides; the special tokens around a short word show where those of a long text belong. */
function truncate(tokenizer, sides, maxLength) {
  const word = tokens(tokenizer, ["a"], false).ids;
  const frame = tokens(tokenizer, sides.map(() => "a"));
  const bare = sides.map((side) => tokens(tokenizer, [side], false).ids);
  const room = maxLength - (frame.ids.length - sides.length * word.length);
  const keptLengths = lengths(bare.map((ids) => ids.length), room);
  const left = tokenizer.config.truncation_side === "left";
  const ids = [];
  const types = [];
  let from = 0;
  bare.forEach((own, side) => {
    const at = find(frame.ids, word, from);
    const part = left ? own.slice(own.length - keptLengths[side]) : own.slice(0, keptLengths[side]);
    ids.push(...frame.ids.slice(from, at), ...part);
    types.push(...frame.types.slice(from, at), ...part.map(() => frame.types[at]));
    from = at + word.length;
  });
  return { ids: [...ids, ...frame.ids.slice(from)], types: [...types, ...frame.types.slice(from)] };
}

/** Returns how many tokens each side keeps ("longest first"): half of the room each, or all of the shorter side. */
function lengths(sizes, room) {
  if (sizes.length === 1) return [room];
  const [less, more] = [...sizes].sort((a, b) => a - b);
  if (2 * less <= room) return sizes.map((size) => (size === less ? less : Math.min(more, room - less)));
  const half = Math.floor(room / 2);
  return sizes[0] <= sizes[1] ? [half, room - half] : [room - half, half];
}

function find(ids, word, from) {
  for (let at = from; at < ids.length; at++) {
    if (word.every((id, i) => ids[at + i] === id)) return at;
  }
  throw new Error("The tokenizer places special tokens in a way that this page does not support.");
}
