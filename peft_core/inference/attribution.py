"""Why a model answers as it does: integrated gradients of one output, word by word."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients

from peft_core.data.labelled import cut
from peft_core.errors import ConfigError, ModelError, RunError
from peft_core.inference.predictor import Prediction, Predictor
from peft_core.problems import REGRESSION, SINGLE
from peft_core.progress import unheard

STEPS, MOST_STEPS = 32, 256
BATCH_TOKENS = 512  # of all steps that are computed together: it bounds the memory, not the result

# Han, Kana, Thai, Lao, Burmese and Khmer write no spaces, so that there a token stands for a word
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class _Reading:
    """One input as the model reads it. `sides` tells of each token whether it is of the first text (0), of
    the second (1) or the tokenizer's own (None), `spans` where it stands in that text, and `ends` up to which
    character each text was read."""

    inputs: dict[str, torch.Tensor]
    sides: Sequence[int | None]
    spans: Sequence[tuple[int, int]]
    ends: Sequence[int]


def attribute(
    predictor: Predictor,
    text: str,
    text_pair: str | None = None,
    label: str | None = None,
    *,
    steps: int = STEPS,
    progress: Callable[[float], None] = unheard,
) -> dict[str, Any]:
    """What each word adds to one output of a model, by integrated gradients (Sundararajan et al. 2017,
    arXiv:1703.01365) from a text of [MASK] tokens to this text.

    What is explained is the raw output of a number, and else the log-odds of `label`, by default the label
    predicted (of several the likeliest): ln(p / (1 - p)) at temperature 1. The answer, in JSON types:
    `label` (None for a number); `value` and `start`, the output for the text and for [MASK] tokens; `words`
    and `pair_words` (None without a second text), each `text`, `start`, `end` (characters) and `score`, where
    the part that was not read comes last and has the score None; `tokens`, each `text` and `score`; `steps`;
    and `delta`, by which the scores' sum misses value - start. The tokenizer's own tokens are kept, score 0.
    Each step costs a pass forward and back; `progress` hears the share of them that is done.

    Raises DataError for an empty text or a second text too many or missing, ConfigError for an unknown label
    or number of steps, RunError where a constant answer stands in for a base without a head, ModelError for
    a tokenizer that does not tell where its tokens stand.
    """
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is {steps!r}; it must be a whole number from 1 to {MOST_STEPS}.")
    prediction = predictor.predict([text], [text_pair])[0]
    if predictor.shows_baseline:
        raise RunError(
            f"The base model of {predictor.run.run_id!r} has no trained head and answers alike to any text, "
            "so there is nothing to explain; look at the adapter."
        )
    index = _index(predictor, prediction, label)
    texts = [text] if text_pair in (None, "") else [text, text_pair]
    reading = _read(predictor, texts)
    scores, value, start = _integrate(predictor, reading, index, steps, progress)
    ids = reading.inputs["input_ids"][0].tolist()
    tokens = zip(predictor.tokenizer.convert_ids_to_tokens(ids), scores, strict=True)
    words = [_words(one, side, reading, scores) for side, one in enumerate(texts)]
    return {
        "label": None if index is None else predictor.classifier.labels[index],
        "value": value,
        "start": start,
        "words": words[0],
        "pair_words": words[1] if len(words) == 2 else None,
        "tokens": [{"text": token, "score": score} for token, score in tokens],
        "steps": steps,
        "delta": sum(scores) - (value - start),
    }


def _index(predictor: Predictor, prediction: Prediction, label: str | None) -> int | None:
    """Which label is explained; None for a number."""
    names, task = predictor.classifier.labels, predictor.classifier.problem_type
    if task == REGRESSION:
        if label is not None:
            raise ConfigError(f"There is no label {label!r}; this model answers with a number.")
        return None
    if label is None:
        label = prediction.label if task == SINGLE else max(prediction.scores, key=prediction.scores.get)
    if label not in names:
        raise ConfigError(f"There is no label {label!r}; it is one of {', '.join(names[:20])}.")
    return names.index(label)


def _read(predictor: Predictor, texts: Sequence[str]) -> _Reading:
    """Tokens and their places; a text that is not read to its end ends with its last token."""
    tokenizer, most = predictor.tokenizer, predictor.classifier.max_length
    if not tokenizer.is_fast:
        raise ModelError(
            "The tokenizer of this model does not tell where its tokens stand in a text, so its words cannot "
            "be scored; save it as tokenizer.json."
        )
    short = [cut(text, most) for text in texts]
    found = tokenizer(*short, truncation=True, max_length=most, return_offsets_mapping=True)
    sides, spans = found.sequence_ids(), found.pop("offset_mapping")
    whole = tokenizer(*short, verbose=False).sequence_ids()
    ends = []
    for side, text in enumerate(texts):
        last = max((end for own, (_, end) in zip(sides, spans, strict=True) if own == side), default=0)
        read = sides.count(side) == whole.count(side) and short[side] == text
        ends.append(len(text) if read else last)
    device = predictor.model.device
    inputs = {name: torch.tensor([ids], device=device) for name, ids in found.items()}
    return _Reading(inputs, sides, spans, ends)


def _integrate(
    predictor: Predictor,
    reading: _Reading,
    index: int | None,
    steps: int,
    progress: Callable[[float], None],
) -> tuple[list[float], float, float]:
    """Scores of the tokens, the output for them, and the output where the path starts."""
    model, inputs, done = predictor.model, dict(reading.inputs), 0
    model.requires_grad_(False)  # else every layer keeps its input for gradients that nobody asks for
    ids = inputs.pop("input_ids")
    start = _start(predictor.tokenizer, ids, reading.sides)
    output = _output(model, tuple(inputs), predictor.classifier.problem_type, index)
    with torch.no_grad():
        ends = [float(output(one, *inputs.values())) for one in (ids, start)]

    def heard(*given: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += len(given[0])
        progress(min(1.0, done / (steps + 2)))  # Captum first looks at both ends of the path
        return output(*given)

    gradients = LayerIntegratedGradients(heard, model.get_input_embeddings()).attribute(
        ids,
        baselines=start,
        additional_forward_args=tuple(inputs.values()),
        n_steps=steps,
        internal_batch_size=max(1, BATCH_TOKENS // ids.shape[1]),
    )
    return gradients[0].sum(-1).tolist(), *ends


def _start(tokenizer: Any, ids: torch.Tensor, sides: Sequence[int | None]) -> torch.Tensor:
    """The same input with nothing said in it. [MASK] before [PAD], from which RoBERTa counts positions."""
    known = (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    nothing = next(token for token in known if token is not None)
    said = torch.tensor([[side is not None for side in sides]], device=ids.device)
    return ids.masked_fill(said, nothing)


def _output(
    model: Any, names: Sequence[str], problem_type: str, index: int | None
) -> Callable[..., torch.Tensor]:
    """A function of input ids and the inputs named, that gives (rows,): a number, or a label's log-odds."""

    def output(ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        raw = model(input_ids=ids, **dict(zip(names, others, strict=True))).logits.float()
        if problem_type != SINGLE:  # of several labels each output is log-odds already
            return raw[:, index or 0]
        rest = [i for i in range(raw.shape[1]) if i != index]
        return raw[:, index] - raw[:, rest].logsumexp(-1)

    return output


def _words(text: str, side: int, reading: _Reading, scores: Sequence[float]) -> list[dict[str, Any]]:
    """The words of one text with the sum of their tokens' scores, and what was not read of it."""
    end = reading.ends[side]
    own = [
        (span, score)
        for of, span, score in zip(reading.sides, reading.spans, scores, strict=True)
        if of == side
    ]
    places = _places(text[:end], [start for (start, _), _ in own])
    sums = [0.0] * len(places)
    at = 0
    for (start, stop), score in own:
        start += len(text[start:stop]) - len(text[start:stop].lstrip())  # some count the space before a word
        while at < len(places) - 1 and places[at][1] <= start:
            at += 1
        if sums:
            sums[at] += score
    found = zip(places, sums, strict=True)
    words = [{"text": text[a:b], "start": a, "end": b, "score": score} for (a, b), score in found]
    unread = {"text": text[end:], "start": end, "end": len(text), "score": None}
    return [*words, unread] if text[end:].strip() else words


def _places(text: str, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Where the words stand: what spaces part, and tokens where the script has no spaces."""
    cuts = sorted({i for i in starts if _UNSPACED.search(text[max(0, i - 1) : i + 1])})
    places = []
    for word in re.finditer(r"\S+", text):
        start, end = word.span()
        edges = [start, *cuts[bisect_right(cuts, start) : bisect_left(cuts, end)], end]
        places += pairwise(edges)
    return places
