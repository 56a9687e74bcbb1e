"""What a model makes of a picture and a question; each step is kept, so that a slider repeats as little as it can."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idsel_core.backbones import Backbone, Encoded
from idsel_core.families import INPUT_KINDS
from idsel_core.methods import Method, UniformGrid, drops_inside
from idsel_core.methods._shared.by_suppression import Greedy
from idsel_core.pruning.pipeline import encode_images, read_tokens, select_tokens, shorten_call
from idsel_core.selection import Selection, id_select
from idsel_core.study.backbone_folders import check_evaluable, is_hub_id
from idsel_core.study.cost.gflops import Gflops
from idsel_core.study.explorer.places import Places, picture_read, places_of
from idsel_core.study.explorer.samples import open_picture
from idsel_core.study.explorer.state import State
from idsel_core.study.full_prompts import PromptWriter
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import project_path
from idsel_core.study.timing.clock import now
from idsel_core.visual_tokens import VisualTokens

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about a picture, as a model reads it.

    Attributes
    ----------
    picture : Image
        What the model reads of the picture.
    inputs : dict[str, Tensor]
        Arguments of the model.
    """

    picture: Image.Image
    inputs: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Seen:
    """An encoded picture with a question.

    Attributes
    ----------
    tokens : VisualTokens
        One row.
    places : Places
        Where they lie.
    encode_ms : float
        Time of the tower pass, milliseconds.
    """

    tokens: VisualTokens
    places: Places
    encode_ms: float


@dataclass(frozen=True)
class Answer:
    """What a model answers.

    Attributes
    ----------
    text : str
        The answer.
    before, after : int
        Visual tokens of the prompt, and those that the last layer of the language model reads.
    average : float
        Mean over the layers of the visual tokens that each reads.
    gflops : float
        Of scores and prefill in the language model; NaN where they are not known.
    encode_ms, select_ms, answer_ms : float
        Times of the tower pass, of the selection with its scores, and of the answer, milliseconds.
    kept : tuple[int, ...]
        Tokens kept to the end, as they were picked.
    """

    text: str
    before: int
    after: int
    average: float
    gflops: float
    encode_ms: float
    select_ms: float
    answer_ms: float
    kept: tuple[int, ...]


def _cached(size: int) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Keep the latest results, as `lru_cache` does, but tell a budget of 1 token from one of 1.0, all tokens."""

    def keep(function: Callable[..., _T]) -> Callable[..., _T]:
        @functools.lru_cache(size)
        def kept(told: tuple[str, ...], *args: Any) -> _T:
            return function(*args)

        @functools.wraps(function)
        def called(*args: Any) -> _T:
            return kept(tuple(repr(one) for one in args if isinstance(one, Method)), *args)

        return called

    return keep


@functools.lru_cache(2)
def opened(backbone: str, device: str) -> tuple[Backbone, Any]:
    """Load a model with its processor; raises as `open_backbone`."""
    if not backbone:
        raise ValueError("no model is named: give a folder or a hub id")
    folder = Path(backbone).expanduser()
    found = backbone if is_hub_id(backbone) else folder if folder.exists() else project_path(folder)
    family = check_evaluable(found)["model_type"]
    if INPUT_KINDS[family] != "image":
        raise ValueError(
            f"{backbone} is a model of type {family!r}, which takes audio clips, and this page shows a picture"
        )
    return open_backbone(found, device)


@functools.lru_cache(8)
def _picture(picture: str | bytes) -> Image.Image:
    return open_picture(picture)


@functools.lru_cache(8)
def _asked(backbone: str, device: str, picture: str | bytes, question: str) -> Asked:
    opened_backbone, processor = opened(backbone, device)
    model = opened_backbone.model
    if not question.strip():
        raise ValueError("the question is empty: type one")
    whole = _picture(picture)
    inputs = PromptWriter(processor, model.device, model.dtype).write([question], [[whole]])
    return Asked(picture_read(processor, inputs.get("pixel_values"), whole), inputs)


@_cached(16)
@torch.no_grad()
def _encoded(backbone: str, device: str, picture: str | bytes, method: Method | None) -> tuple[Encoded, float]:
    """Return the encoding of a picture, as a method needs it if one is given, and its time."""
    asked = _asked(backbone, device, picture, "What is this?")
    acting = method or UniformGrid(1.0)
    model = opened(backbone, device)[0]
    return _timed(lambda: encode_images(model, acting, asked.inputs), model.model.device)


@_cached(16)
@torch.no_grad()
def _seen(backbone: str, device: str, picture: str | bytes, question: str, method: Method | None) -> Seen:
    encoded, encode_ms = _encoded(backbone, device, picture, method)
    asked = _asked(backbone, device, picture, question)
    tokens = read_tokens(opened(backbone, device)[0], encoded, asked.inputs)
    if len(tokens) != 1:
        raise ValueError(f"the model reads {len(tokens)} images instead of one")
    return Seen(tokens, places_of(tokens), encode_ms)


def asked(state: State) -> Asked:
    """Return the question and the picture as the model reads them."""
    state.check()
    return _asked(state.backbone, state.device, state.picture, state.question)


def seen(state: State, method: Method) -> Seen:
    """Return the tokens that a method selects from."""
    # Methods that read the usual encoding share it.
    own = method if method.acts_on_pixels or method.tower_depths else None
    return _seen(state.backbone, state.device, state.picture, state.question, own)


def everything(state: State) -> Seen:
    """Return all tokens of the picture."""
    return seen(state, UniformGrid(1.0))


@_cached(256)
@torch.no_grad()
def _picked(seen: Seen, method: Method) -> Selection:
    return select_tokens(method, seen.tokens)


def picked(state: State, method: Method) -> Selection:
    """Return what a method selects."""
    return _picked(seen(state, method), method)


def scores_left(state: State, method: Method, step: int) -> np.ndarray | None:
    """Return the scores (N,) after so many picks, NaN at the picks; None of a method that lowers no scores."""
    if not isinstance(method, Greedy):
        return None
    tokens, selection = seen(state, method).tokens, picked(state, method)
    # As many picks as the next power of 2, so that a slider finds most steps computed.
    most = min(1 << step.bit_length(), int(tokens.lengths[0]) - 1) + 1
    trace = _trace(seen(state, method), selection, method, most)
    left = trace[min(step, most - 1)].astype(float)
    return np.where(np.isfinite(left), left, np.nan)


@_cached(64)
@torch.no_grad()
def _trace(seen: Seen, selection: Selection, method: Greedy, picks: int) -> np.ndarray:
    tokens = seen.tokens
    features = tokens.features if method.features == "projector" else tokens.encoder_features
    traced = id_select(
        features,
        selection.scores,
        picks,
        method.gamma,
        method.update,
        tokens.mask,
        trace=True,
        exhausted=method.exhausted,
    ).trace
    assert traced is not None
    return traced[0].cpu().numpy()


@torch.no_grad()
def similarity(state: State, method: Method, token: int) -> np.ndarray:
    """Return the cosine of a token's projected features with those of all tokens, (N,)."""
    features = torch.nn.functional.normalize(seen(state, method).tokens.features[0].float(), dim=-1)
    return (features @ features[token]).cpu().numpy()


def answer(state: State, method: Method | None) -> Answer:
    """Return the answer with the tokens that a method keeps, or with all tokens."""
    return _answer(state.backbone, state.device, state.picture, state.question, state.new_tokens, method)


@_cached(256)
@torch.no_grad()
def _answer(
    name: str, device: str, picture: str | bytes, question: str, new_tokens: int, method: Method | None
) -> Answer:
    state = State(picture, question, backbone=name, device=device)
    backbone, processor = opened(name, device)
    acting = UniformGrid(1.0) if method is None else method
    one, inputs = seen(state, acting), asked(state).inputs
    # Tokens are read anew, because a view that another method has computed takes this one no time.
    own = acting if acting.acts_on_pixels or acting.tower_depths else None
    tokens = read_tokens(backbone, _encoded(name, device, picture, own)[0], inputs)
    selection, select_ms = _timed(lambda: select_tokens(acting, tokens), backbone.model.device)
    call = shorten_call(backbone, acting, tokens, selection, inputs)

    def generate() -> tuple[Tensor, Any]:
        with call.running() as passage:
            return backbone.model.generate(**call.inputs, max_new_tokens=new_tokens, do_sample=False), passage

    (output, passage), answer_ms = _timed(generate, backbone.model.device)
    new = output[0, call.inputs["input_ids"].shape[1] :]
    layers = passage.layers[0].tolist()
    before = int(tokens.full_lengths[0])
    marks = backbone.placeholders(call.inputs["input_ids"])
    words = int((~marks).sum())
    counted = Gflops(backbone.model.config)
    scoring = 0.0 if method is None else counted.scoring(method, before, words)
    left = passage.left if drops_inside(acting) else selection
    return Answer(
        text=processor.decode(new, skip_special_tokens=True).strip(),
        before=before,
        after=layers[-1],
        average=sum(layers) / len(layers),
        gflops=counted.prefill(layers, words) + scoring,
        encode_ms=one.encode_ms,
        select_ms=0.0 if method is None else select_ms,
        answer_ms=answer_ms,
        kept=tuple(left.order[0, : int(left.counts[0])].tolist()),
    )


def _timed(run: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    """Run something; return its result and its milliseconds."""
    start = now(device)
    result = run()
    return result, 1000 * (now(device) - start)
