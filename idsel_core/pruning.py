"""Prune visual tokens of a model inside a ``with`` block."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from idsel_core.backbones import Relevance, adapter_for
from idsel_core.backbones.base import POSITIONS
from idsel_core.methods import Method


@dataclass(frozen=True)
class ImageRecord:
    """What happened to one image.

    Attributes
    ----------
    call : int
        Which call of the model inside the block, from 0.
    image : int
        Which image of that call, from 0.
    before, after : int
        Image tokens in the prompt, before and after.
    requested : int or float
        The budget that was asked.
    indices, order : list[int]
        Kept tokens in raster order and in the order in which they were picked.
    encode_ms, select_ms : float
        Wall time of the tower pass and of the selection with its scores, milliseconds, the call's time shared
        equally between its images.
    """

    call: int
    image: int
    before: int
    after: int
    requested: int | float
    indices: list[int]
    order: list[int]
    encode_ms: float
    select_ms: float


class Pruning:
    """The context manager that `prune` returns.

    Attributes
    ----------
    report : list[ImageRecord]
        One record an image, in the order of the calls; it goes on growing when the object is entered again.
    """

    def __init__(
        self, model: Any, method: Method, positions: Literal["compact", "keep"], relevance: Relevance | None
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method must be a Method, for example IDSelection(budget=64), not {method!r}")
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        self.model = model
        self.method = method
        self.positions = positions
        self.backbone = adapter_for(model, relevance)
        self.report: list[ImageRecord] = []
        self._calls = 0

    def __enter__(self) -> Self:
        """Begin to prune."""
        if self.model not in _PATCHES:
            _PATCHES[self.model] = _Patch(self.model)
        _PATCHES[self.model].runs.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was."""
        patch = _PATCHES[self.model]
        patch.runs.remove(self)
        if not patch.runs:
            _PATCHES.pop(self.model).undo()

    def shorten(self, inputs: dict[str, Any], generating: bool) -> dict[str, Any] | None:
        """Return the arguments of a shorter call, or None where there is no image to prune.

        Raises
        ------
        ValueError
            If the call cannot be pruned; the message says why.
        """
        pixels, input_ids, mask = (inputs.get(name) for name in ("pixel_values", "input_ids", "attention_mask"))
        if inputs.get("mm_encoder_outputs") is not None:
            raise ValueError("prune() encodes the images itself: give pixel_values instead of mm_encoder_outputs")
        if pixels is None:
            self._check_without_image(inputs, generating)
            return None
        if input_ids is None or inputs.get("inputs_embeds") is not None:
            raise ValueError("prune() needs the prompt as input_ids, not as inputs_embeds")
        if _cached_tokens(inputs):
            raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
        if isinstance(inputs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep must be a number inside prune(), because columns move")
        if mask is not None and mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask must be {tuple(input_ids.shape)}, as input_ids, not {tuple(mask.shape)}")
        if generating and mask is None and (mask := _inferred_mask(self.model, inputs)) is not None:
            inputs = {**inputs, "attention_mask": mask}
        if self.positions == "keep":
            inputs = self._keep_positions(inputs, generating)
        images = {name: inputs[name] for name in self.backbone.image_inputs if inputs.get(name) is not None}
        grid = self.method.wanted_grid(*self.backbone.image_grid(pixels))
        with _stopwatch(pixels.device) as encode_ms:
            encoded = self.backbone.encode(grid=grid, depths=self.method.depths, **images)
        with _stopwatch(pixels.device) as select_ms, torch.no_grad():
            tokens = self.backbone.visual_tokens(encoded, input_ids, mask, inputs.get("position_ids"))
            selection = self.method.select(tokens)
        short = self.backbone.shorten(inputs, tokens, selection, self.positions)
        before = (tokens.lengths if tokens.placeholders is None else tokens.placeholders).tolist()
        for image, order in enumerate(selection.order.tolist()):
            count = int(selection.counts[image])
            self.report.append(
                ImageRecord(
                    call=self._calls,
                    image=image,
                    before=before[image],
                    after=count,
                    requested=selection.requested,
                    indices=selection.indices[image, :count].tolist(),
                    order=order[:count],
                    encode_ms=encode_ms() / len(tokens),
                    select_ms=select_ms() / len(tokens),
                )
            )
        self._calls += 1
        return short

    def _keep_positions(self, inputs: dict[str, Any], generating: bool) -> dict[str, Any]:
        input_ids = inputs["input_ids"]
        if generating:
            if _setting(self.model, inputs, "use_cache") is False:
                raise ValueError(
                    'positions="keep" needs use_cache=True: without a cache, generate() drops the mask and then reads '
                    "gaps between positions as borders of packed sequences"
                )
            return inputs
        # What forward does by itself where generate counts from the mask; the mask keeps gaps from being borders.
        defaults = {
            "position_ids": torch.arange(input_ids.shape[1], device=input_ids.device)[None],
            "attention_mask": torch.ones_like(input_ids),
        }
        return {**inputs, **{name: value for name, value in defaults.items() if inputs.get(name) is None}}

    def _check_without_image(self, inputs: dict[str, Any], generating: bool) -> None:
        input_ids, mask, cached = inputs.get("input_ids"), inputs.get("attention_mask"), _cached_tokens(inputs)
        if input_ids is None:
            return
        found = int((input_ids == self.backbone.image_token_id).sum())
        if found and not cached:
            raise ValueError(f"the prompt holds {found} image placeholders, but there are no pixel_values")
        if found and generating:
            raise ValueError(
                "prune() cannot go on from a cache with a prompt that holds images, because the cache is shorter"
            )
        if cached and not generating and mask is not None and mask.shape[-1] > cached + input_ids.shape[1]:
            raise ValueError(
                f"attention_mask has {mask.shape[-1]} columns, but the shortened cache and the new tokens have "
                f"{cached} + {input_ids.shape[1]}"
            )


def prune(
    model: Any,
    method: Method,
    positions: Literal["compact", "keep"] = "compact",
    relevance: Relevance | None = None,
) -> Pruning:
    """Let a model read only the visual tokens that a method selects.

    Inside the block, ``model.generate(...)`` and ``model(...)`` with ``pixel_values`` encode the images once, select,
    and run on a shorter prompt: the cache is shorter, and so are the logits of ``model(...)``. Sequences that
    ``generate`` returns begin with the prompt as it was given. Calls without images are not touched. Blocks nest: the
    innermost decides. After the outermost, also when it raises, the model is what it was.

    Parameters
    ----------
    model : PreTrainedModel
        A model of a supported family, see `idsel_core.backbones.BACKBONES`.
    method : Method
        For example ``IDSelection(budget=64)``.
    positions : {"compact", "keep"}
        Number the remaining tokens anew, or let them keep the positions that they had in the full prompt.
    relevance : Relevance, optional
        Shared image-text space for methods that read ``relevance``, for example a `Companion`.

    Returns
    -------
    Pruning
        A context manager with ``report``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed or the model is not supported. Inside the block, calls raise ValueError where
        prompts, images and budget do not fit.

    Examples
    --------
    >>> with prune(model, IDSelection(budget=64)) as run:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=16)
    >>> run.report[0].after  # doctest: +SKIP
    64
    """
    return Pruning(model, method, positions, relevance)


class _Patch:
    """The two cuts into a model: ``generate`` and a hook before ``forward``; the innermost run decides what they do."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.runs: list[Pruning] = []
        self.generate: Callable[..., Any] = model.generate
        self.own = model.__dict__.get("generate")
        self.inside = False
        self.hook = model.register_forward_pre_hook(self.before_forward, with_kwargs=True)

        @functools.wraps(self.generate)
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self.shortened_generate(args, kwargs)

        model.generate = generate

    def undo(self) -> None:
        self.hook.remove()
        del self.model.generate
        if self.own is not None:
            self.model.generate = self.own

    def before_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.inside:
            return None
        short = self.runs[-1].shorten(_bound(self.model.forward, args, kwargs), generating=False)
        return None if short is None else ((), short)

    def shortened_generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = _bound(self.generate, args, kwargs)
        if inputs.get("input_ids") is None and inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs.pop("inputs")
        if inputs.get("cache_implementation") == "paged":
            raise ValueError('prune() does not support continuous batching, cache_implementation="paged"')
        short = None if self.inside else self.runs[-1].shorten(inputs, generating=True)
        before, self.inside = self.inside, True
        try:
            if short is None:
                return self.generate(*args, **kwargs)
            prompt, width = inputs["input_ids"], short["input_ids"].shape[1]
            out = self.generate(**(short | _moved_limits(self.model, inputs, prompt.shape[1] - width)))
        finally:
            self.inside = before
        sequences: Tensor = out if isinstance(out, Tensor) else out.sequences
        # Callers cut their own prompt off by its length.
        prompt = prompt.to(sequences.device).repeat_interleave(len(sequences) // len(prompt), 0)
        sequences = torch.cat([prompt, sequences[:, width:]], 1)
        if isinstance(out, Tensor):
            return sequences
        out.sequences = sequences
        return out


_PATCHES: dict[nn.Module, _Patch] = {}


def _bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name, {})
    return arguments


def _setting(model: Any, inputs: dict[str, Any], name: str) -> Any:
    """Return a generation setting from where ``generate`` takes it: argument, given config, the model's config."""
    for value in (inputs.get(name), getattr(inputs.get("generation_config"), name, None)):
        if value is not None:
            return value
    return getattr(model.generation_config, name, None)


def _moved_limits(model: Any, inputs: dict[str, Any], cut: int) -> dict[str, int]:
    """Return the limits that count the prompt, lowered by what was cut out of it."""
    limits = {}
    for limit, of_new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = _setting(model, inputs, limit)
        if value and _setting(model, inputs, of_new_tokens) is None:
            limits[limit] = max(value - cut, 0)
    return limits


def _inferred_mask(model: Any, inputs: dict[str, Any]) -> Tensor | None:
    """Return the mask that ``generate`` would infer from padding in the prompts, None where it infers none."""
    pad, ends = _setting(model, inputs, "pad_token_id"), _setting(model, inputs, "eos_token_id")
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return None
    mask: Tensor = inputs["input_ids"] != pad
    return None if bool(mask.all()) else mask.long()


def _cached_tokens(inputs: dict[str, Any]) -> int:
    cache = inputs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


@contextmanager
def _stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """Time the block in milliseconds, with the work that it queued on a GPU."""
    times: list[float] = []

    def stamp() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    stamp()
    yield lambda: (times[1] - times[0]) * 1e3
    stamp()
