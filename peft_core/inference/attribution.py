"""Attribute a model's output to the words of its input by integrated gradients."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients

from peft_core.data.labelled import truncate_text
from peft_core.errors import ConfigError, ModelError, RunError
from peft_core.inference.predictor import Prediction, Predictor
from peft_core.problem_types import REGRESSION, SINGLE
from peft_core.progress import no_progress

STEPS, MAX_STEPS = 32, 256
BATCH_TOKENS = 512  # of all steps computed in one batch; bounds the memory, does not change the result

# Han, Kana, Thai, Lao, Burmese and Khmer write no spaces between words: there each token counts as a word
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class _Encoding:
    """One tokenized input.

    Attributes:
        inputs: The model's inputs, each of shape (1, tokens).
        sequence_ids: Of each token 0 (first text), 1 (second text) or None (special token).
        offsets: Start and end character of each token in its text.
        ends: The character up to which each text was read before truncation.
    """

    inputs: dict[str, torch.Tensor]
    sequence_ids: Sequence[int | None]
    offsets: Sequence[tuple[int, int]]
    ends: Sequence[int]


def attribute(
    predictor: Predictor,
    text: str,
    text_pair: str | None = None,
    label: str | None = None,
    *,
    steps: int = STEPS,
    progress: Callable[[float], None] = no_progress,
) -> dict[str, Any]:
    """Attribute a model's output to the words of a text by integrated gradients.

    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    The baseline has [MASK] tokens in place of the text; special tokens are kept and score 0. The output is
    the number of a regression, else the log-odds ln(p / (1 - p)) of a label at temperature 1.

    Args:
        predictor: The model.
        text: The text.
        text_pair: The second text, for a run that was trained on pairs.
        label: The label to explain; by default the predicted (multi-label: the most probable) one.
        steps: Integration steps; each costs a forward and a backward pass.
        progress: Called with the share of steps done, from 0 to 1.

    Returns:
        `label` (None for a regression); `value` and `start`, the output for the text and for the baseline;
        `words` and `pair_words` (None without a second text), each with `text`, `start`, `end` (characters)
        and `score`, a truncated rest last with score None; `tokens`, each with `text` and `score`; `steps`;
        `delta`, the sum of the scores minus (value - start). All are JSON types.

    Raises:
        DataError: If the text is empty, or the second text is missing or not expected.
        ConfigError: If the label is unknown or the number of steps is out of range.
        RunError: If the base model has no trained head and is replaced by a constant prediction.
        ModelError: If the tokenizer does not return offsets.
    """
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"steps is {steps!r}; it must be a whole number from 1 to {MAX_STEPS}.")
    prediction = predictor.predict([text], [text_pair])[0]
    if predictor.shows_baseline:
        raise RunError(
            f"The base model of {predictor.run.run_id!r} has no trained head and predicts the same for "
            "every text, so there is nothing to explain; choose the adapter."
        )
    index = _index(predictor, prediction, label)
    texts = [text] if text_pair in (None, "") else [text, text_pair]
    encoding = _encode(predictor, texts)
    scores, output, baseline = _integrate(predictor, encoding, index, steps, progress)
    ids = encoding.inputs["input_ids"][0].tolist()
    tokens = zip(predictor.tokenizer.convert_ids_to_tokens(ids), scores, strict=True)
    words = [_words(part, sequence, encoding, scores) for sequence, part in enumerate(texts)]
    return {
        "label": None if index is None else predictor.classifier.labels[index],
        "value": output,
        "start": baseline,
        "words": words[0],
        "pair_words": words[1] if len(words) == 2 else None,
        "tokens": [{"text": token, "score": score} for token, score in tokens],
        "steps": steps,
        "delta": sum(scores) - (output - baseline),
    }


def _index(predictor: Predictor, prediction: Prediction, label: str | None) -> int | None:
    """Return the index of the label to explain; None for a regression."""
    names, problem_type = predictor.classifier.labels, predictor.classifier.problem_type
    if problem_type == REGRESSION:
        if label is not None:
            raise ConfigError(f"There is no label {label!r}; this model answers with a number.")
        return None
    if label is None:
        scores = prediction.scores
        label = prediction.label if problem_type == SINGLE else max(scores, key=lambda name: scores[name])
    if label not in names:
        raise ConfigError(f"There is no label {label!r}; it is one of {', '.join(names[:20])}.")
    return names.index(label)


def _encode(predictor: Predictor, texts: Sequence[str]) -> _Encoding:
    """Tokenize with offsets; a truncated text ends at its last token."""
    tokenizer, max_length = predictor.tokenizer, predictor.classifier.max_length
    if not tokenizer.is_fast:
        raise ModelError(
            "The tokenizer of this model does not return character offsets, so the words of a text cannot be "
            "scored; save it as tokenizer.json."
        )
    truncated_texts = [truncate_text(text, max_length) for text in texts]
    encoded = tokenizer(*truncated_texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    sequence_ids, offsets = encoded.sequence_ids(), encoded.pop("offset_mapping")
    full_sequence_ids = tokenizer(*truncated_texts, verbose=False).sequence_ids()
    ends = []
    for sequence, text in enumerate(texts):
        token_ends = (end for i, (_, end) in zip(sequence_ids, offsets, strict=True) if i == sequence)
        last_end = max(token_ends, default=0)
        is_complete = (
            sequence_ids.count(sequence) == full_sequence_ids.count(sequence)
            and truncated_texts[sequence] == text
        )
        ends.append(len(text) if is_complete else last_end)
    device = predictor.model.device
    inputs = {name: torch.tensor([ids], device=device) for name, ids in encoded.items()}
    return _Encoding(inputs, sequence_ids, offsets, ends)


def _integrate(
    predictor: Predictor,
    encoding: _Encoding,
    index: int | None,
    steps: int,
    progress: Callable[[float], None],
) -> tuple[list[float], float, float]:
    """Return the scores of the tokens, the output for them, and the output for the baseline."""
    model, inputs, done = predictor.model, dict(encoding.inputs), 0
    model.requires_grad_(False)  # else every layer keeps its input for unused weight gradients
    ids = inputs.pop("input_ids")
    baseline_ids = _baseline(predictor.tokenizer, ids, encoding.sequence_ids)
    output = _output(model, tuple(inputs), predictor.classifier.problem_type, index)
    with torch.no_grad():
        text_output = float(output(ids, *inputs.values()))
        baseline_output = float(output(baseline_ids, *inputs.values()))

    def output_with_progress(*tensors: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += len(tensors[0])
        progress(min(1.0, done / (steps + 2)))  # Captum first evaluates both ends of the path
        return output(*tensors)

    gradients = LayerIntegratedGradients(output_with_progress, model.get_input_embeddings()).attribute(
        ids,
        baselines=baseline_ids,
        additional_forward_args=tuple(inputs.values()),
        n_steps=steps,
        internal_batch_size=max(1, BATCH_TOKENS // ids.shape[1]),
    )
    assert isinstance(gradients, torch.Tensor)  # one layer, and no convergence delta requested
    return gradients[0].sum(-1).tolist(), text_output, baseline_output


def _baseline(tokenizer: Any, ids: torch.Tensor, sequence_ids: Sequence[int | None]) -> torch.Tensor:
    """Replace the text's tokens by [MASK]; [PAD] comes second, because RoBERTa derives positions from it."""
    candidates = (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    neutral = next(token for token in candidates if token is not None)
    is_text = torch.tensor([[i is not None for i in sequence_ids]], device=ids.device)
    return ids.masked_fill(is_text, neutral)


def _output(
    model: Any, names: Sequence[str], problem_type: str, index: int | None
) -> Callable[..., torch.Tensor]:
    """Return a function (input ids, *named inputs) -> numbers or log-odds of one label, shape (rows,)."""

    def output(ids: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, **dict(zip(names, inputs, strict=True))).logits.float()
        if problem_type != SINGLE:  # multi-label logits are log-odds already
            return logits[:, index or 0]
        rest = [i for i in range(logits.shape[1]) if i != index]
        return logits[:, index] - logits[:, rest].logsumexp(-1)

    return output


def _words(text: str, sequence: int, encoding: _Encoding, scores: Sequence[float]) -> list[dict[str, Any]]:
    """Return the words of one text with the sum of their tokens' scores, and the truncated rest."""
    end = encoding.ends[sequence]
    tokens = [
        (span, score)
        for i, span, score in zip(encoding.sequence_ids, encoding.offsets, scores, strict=True)
        if i == sequence
    ]
    spans = _word_spans(text[:end], [start for (start, _), _ in tokens])
    sums = [0.0] * len(spans)
    at = 0
    for (start, stop), score in tokens:
        # some tokenizers include the space before a word
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        while at < len(spans) - 1 and spans[at][1] <= start:
            at += 1
        if sums:
            sums[at] += score
    words: list[dict[str, Any]] = [
        {"text": text[a:b], "start": a, "end": b, "score": score}
        for (a, b), score in zip(spans, sums, strict=True)
    ]
    unread = {"text": text[end:], "start": end, "end": len(text), "score": None}
    return [*words, unread] if text[end:].strip() else words


def _word_spans(text: str, token_starts: Sequence[int]) -> list[tuple[int, int]]:
    """Split at spaces, and at token starts in scripts without spaces; return (start, end) characters."""
    cuts = sorted({i for i in token_starts if _UNSPACED.search(text[max(0, i - 1) : i + 1])})
    spans = []
    for word in re.finditer(r"\S+", text):
        start, end = word.span()
        edges = [start, *cuts[bisect_right(cuts, start) : bisect_left(cuts, end)], end]
        spans += pairwise(edges)
    return spans
