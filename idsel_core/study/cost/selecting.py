"""FLOPs of selecting tokens, before the language model and between its layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from idsel_core.methods import (
    DART,
    METHODS,
    DiversityOnly,
    FastV,
    IDSelection,
    IDSelectionInside,
    InLLM,
    Method,
    PyramidDrop,
    Random,
    SparseVLM,
    TopK,
    UniformGrid,
)
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.methods._shared.by_suppression import Greedy
from idsel_core.scores.registry import IMPORTANCE, Combination, instruction, relevance, saliency
from idsel_core.selection.budget import resolve_budget
from idsel_core.study.cost.shapes import Decoder, Flops, Tower, add

COUNTED_METHODS: tuple[type[Method], ...] = (
    IDSelection, TopK, DiversityOnly, Random, UniformGrid, FastV, PyramidDrop, SparseVLM, DART,
    IDSelectionInside,
)  # fmt: skip
COUNTED_IMPORTANCE = ("saliency", "instruction", "unified", "unified-product", "unified-geometric")
"""Methods and importance scores whose FLOPs are known."""


def profile_by(method: Method, visual: int, layers: int) -> list[int]:
    """Return the visual tokens that each layer reads under a method, of an image of so many visual tokens.

    Raises ValueError if the method cannot reach its budget.
    """
    full = torch.tensor([visual])
    if not isinstance(method, InLLM):
        return [int(resolve_budget(method.budget, full))] * layers
    places = method.drop_layers(layers)
    entering = method.entering(full, layers)
    counts = [int(entering), *method.counts(full, entering, layers)[0].tolist()]
    spans = [after - before for before, after in pairwise((0, *places, layers))]
    return [tokens for tokens, span in zip(counts, spans, strict=True) for _ in range(span)]


def flops_of_selection(
    method: Method, model: Decoder, tower: Tower, profile: Sequence[int], text_tokens: int, attention: str
) -> Flops:
    """Return the FLOPs of a method's scores and of picking tokens by them.

    Parameters
    ----------
    method : Method
        A method of `COUNTED_METHODS`.
    model, tower : Decoder, Tower
        The model.
    profile : sequence of int
        Visual tokens that each layer reads.
    text_tokens : int
        All other tokens of the prompt, counted as if they followed the image and, where words are read, were words.
    attention : {"full", "causal"}
        As for `flops_analytic`.

    Raises
    ------
    ValueError
        If the method or its importance is not counted, or it keeps another number of tokens than `profile`.
    """
    if type(method) not in COUNTED_METHODS:
        known = ", ".join(kind.name for kind in COUNTED_METHODS)
        raise ValueError(f"the analytic cost of method {method.name!r} is not known; known: {known}")
    wanted = profile_by(method, tower.visual, model.layers)
    if wanted != list(profile):
        keeps, given = (", ".join(map(str, dict.fromkeys(counts))) for counts in (wanted, profile))
        raise ValueError(f"{method!r} keeps {keeps} of {tower.visual} tokens, but visual_tokens says {given}")
    scores = greedy = 0
    if isinstance(method, Scored):
        scores = _scores(method, model, tower, text_tokens, attention)
    if isinstance(method, Greedy):
        width = model.hidden if method.features == "projector" else tower.features
        greedy = _greedy(method, tower.visual, profile[0], width)
    before = Flops(scores=scores, greedy=greedy)
    return add([before, _inside(method, model, profile, text_tokens)]) if isinstance(method, InLLM) else before


def _greedy(method: Greedy, tokens: int, picks: int, width: int) -> int:
    """Return the FLOPs of `id_select` on tokens of so many features."""
    return 2 * picks * tokens * (width + (method.update == "subtract")) + 2 * tokens * width * (method.gamma == "auto")


def _scores(method: Scored, model: Decoder, tower: Tower, text_tokens: int, attention: str) -> int:
    if method.importance not in COUNTED_IMPORTANCE:
        known = ", ".join(COUNTED_IMPORTANCE)
        raise ValueError(f"the analytic cost of importance {method.importance!r} is not known; known: {known}")
    scores = 0 if method.importance == "instruction" else 2 * tower.rows * tower.query
    if method.importance == "saliency":
        return scores
    return scores + _instruction(method, model, tower.visual, text_tokens, attention)


def _instruction(method: Scored, model: Decoder, visual: int, text_tokens: int, attention: str) -> int:
    """Return the FLOPs of the layers in front of the instruction attention, and of its queries, keys and products."""
    length, depth = visual + text_tokens, method.instruction_layer
    if depth >= model.layers:
        raise ValueError(f"instruction layer {depth} does not exist; the language model has {model.layers}")
    queries = 1 if method.instruction_tokens == "last" else text_tokens
    before = sum(
        model.layer(length, model.pairs(layer, visual, text_tokens, attention)).total for layer in range(depth)
    )
    return before + model.keys_and_queries(length, queries) + 2 * queries * visual * model.query


def flops_of_reading(
    method: Method, model: Decoder, visual_tokens: int, text_tokens: int, attention: str = "full"
) -> int | None:
    """Return the FLOPs that a method's score takes of the language model, before any token is selected.

    Parameters
    ----------
    method : Method
        Any method.
    model : Decoder
        The language model.
    visual_tokens, text_tokens : int
        Of the whole prompt. Words of the instruction are counted as if they were all text.
    attention : {"full", "causal"}
        As for `flops_analytic`.

    Returns
    -------
    int or None
        0 if the score does not read the language model; None if it is a score or a method of your own, which may.
    """
    if not isinstance(method, Scored):
        return 0 if type(method) in METHODS.values() else None
    known = _reads_instruction(method.importance)
    return _instruction(method, model, visual_tokens, text_tokens, attention) if known else None if known is None else 0


def _reads_instruction(importance: str) -> bool | None:
    score = IMPORTANCE[importance]
    if isinstance(score, Combination):
        parts = [_reads_instruction(part) for part in (score.first, score.second)]
        return True if True in parts else None if None in parts else False
    return True if score is instruction else False if score in (saliency, relevance) else None


def _inside(method: InLLM, model: Decoder, profile: Sequence[int], text_tokens: int) -> Flops:
    """Return the FLOPs of all drops of one image; SparseVLM's rating words are counted as all text tokens."""
    parts = []
    if isinstance(method, SparseVLM):
        parts.append(Flops(scores=2 * profile[0] * text_tokens * model.hidden))
    for place in method.drop_layers(model.layers):
        before, after = profile[place - 1], profile[place]
        if after >= before:
            continue
        length = before + text_tokens
        queries = text_tokens if isinstance(method, SparseVLM) else 1
        scores = 0 if isinstance(method, DART) else 2 * queries * length * model.query
        if method.attention_from == "after":
            scores += model.keys_and_queries(length, queries)
        greedy = 0
        if isinstance(method, DART):
            pivots = min(method.image_pivots, after) + min(method.text_pivots, text_tokens)
            greedy = 2 * pivots * before * model.hidden
        elif isinstance(method, SparseVLM):
            kept = method.kept(before, after)
            greedy = 2 * (after - kept) * method.recycled(before - kept) * model.hidden
        elif isinstance(method, Greedy):
            greedy = _greedy(method, before, after, model.hidden)
        parts.append(Flops(scores=scores, greedy=greedy))
    return add(parts)
