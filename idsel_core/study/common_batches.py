"""Answer shortened prompts of several settings in common batches, sorted by length so that little is padding."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone
from idsel_core.backbones._shared.prompts import PER_TOKEN
from idsel_core.study.shared_prefix import can_share, generate_sharing
from idsel_core.visual_tokens import Slots

CPU_COLUMNS = 4096
"""Columns of a batch on a CPU: beyond, matrices leave the cache and products take longer."""
_PADDING = 1.2
"""The columns of a batch are at most so many times those of its prompts."""
_PAYS = 0.9
"""Beginnings are shared if no more than this share of the columns is read then."""


@dataclass(frozen=True, eq=False)
class ShortPrompt:
    """One shortened prompt, without padding, and what the language model reads at its placeholders.

    Attributes
    ----------
    columns : Mapping[str, Tensor]
        Arguments of the model with one column a token, (..., L).
    images : Mapping[str, tuple[type, Sequence[Mapping[str, Any]]]]
        By kind, such as "image": the class of the encoder's output, and its fields for each image.
    rope_delta : Tensor, optional
        How far positions are behind columns, (1,), where the model remembers it between calls.
    beginning : int
        Columns up to the last visual token.
    begins_like : Hashable
        Prompts of equal value have the same beginning.
    """

    columns: Mapping[str, Tensor]
    images: Mapping[str, tuple[type, Sequence[Mapping[str, Any]]]]
    rope_delta: Tensor | None
    beginning: int
    begins_like: Hashable

    def __len__(self) -> int:
        return self.columns["input_ids"].shape[-1]


def split_prompts(
    backbone: Backbone, inputs: Mapping[str, Any], image_rows: Tensor, begins_like: Sequence[Hashable]
) -> list[ShortPrompt]:
    """Split a batch of shortened prompts.

    Parameters
    ----------
    backbone : Backbone
        Of the model; prompts were shortened by its `shorten` just now.
    inputs : Mapping[str, Any]
        What `shorten` gave, padded on the left, for B prompts.
    image_rows : Tensor
        Prompt of each image, in the order of the images of each kind, int64 (I,).
    begins_like : sequence of Hashable
        As of `ShortPrompt`, of length B.

    Raises
    ------
    ValueError
        If an argument has an unknown form.
    """
    unknown = sorted(set(inputs) - {*PER_TOKEN, "mm_encoder_outputs"})
    if unknown:
        raise ValueError(f"prompts cannot be split by {', '.join(unknown)}")
    lengths = inputs["attention_mask"].sum(1).tolist()
    marked = backbone.placeholders(inputs["input_ids"])
    behind = marked.flip(1).byte().argmax(1).where(marked.any(1), inputs["input_ids"].shape[1]).tolist()
    deltas = getattr(backbone.core, "rope_deltas", None)
    owned: list[dict[str, tuple[type, list[dict[str, Any]]]]] = [{} for _ in lengths]
    for kind, output in (inputs.get("mm_encoder_outputs") or {}).items():
        for image, row in enumerate(_rows_of(kind, output, image_rows)):
            _, mine = owned[row].setdefault(kind, (type(output), []))
            mine.append({name: _of_image(value, image) for name, value in output.items()})
    columns = {name: value for name, value in inputs.items() if name != "mm_encoder_outputs"}
    return [
        ShortPrompt(
            columns={name: _of_row(value, row, length) for name, value in columns.items()},
            images=owned[row],
            rope_delta=None if deltas is None else deltas[row],
            beginning=max(length - after, 0),
            begins_like=like,
        )
        for row, (length, after, like) in enumerate(zip(lengths, behind, begins_like, strict=True))
    ]


def join_prompts(backbone: Backbone, prompts: Sequence[ShortPrompt]) -> dict[str, Any]:
    """Return the prompts as one batch, padded on the left, good for one call of the model that follows at once."""
    width = max(map(len, prompts))
    pad_token_id = getattr(backbone.model.generation_config, "pad_token_id", None) or 0
    fill = {**PER_TOKEN, "input_ids": pad_token_id}
    inputs: dict[str, Any] = {}
    for name in prompts[0].columns:
        rows = [prompt.columns[name] for prompt in prompts]
        padded = [torch.nn.functional.pad(row, (width - row.shape[-1], 0), value=fill[name]) for row in rows]
        inputs[name] = torch.stack(padded, -2)  # (..., B, L)
    outputs: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for prompt in prompts for kind in prompt.images):
        owned = [prompt.images[kind] for prompt in prompts if kind in prompt.images]
        images = [image for _, mine in owned for image in mine]
        make: Any = owned[0][0]
        outputs[kind] = make(**{name: _joined([image[name] for image in images]) for name in images[0]})
    if outputs:
        inputs["mm_encoder_outputs"] = outputs
    if hasattr(backbone.core, "rope_deltas"):
        deltas = [prompt.rope_delta for prompt in prompts if prompt.rope_delta is not None]
        backbone.core.rope_deltas = torch.stack(deltas) if deltas else None
    return inputs


class CommonBatches:
    """Answers shortened prompts, in batches whose size is halved for good when memory runs out.

    Parameters
    ----------
    backbone : Backbone
        The model.
    prompts : int
        Full prompts of a batch; of shortened ones it holds as many as have their columns.
    options : Mapping[str, Any]
        Of ``generate``.
    """

    def __init__(self, backbone: Backbone, prompts: int, options: Mapping[str, Any]) -> None:
        self.backbone, self.prompts, self.options = backbone, prompts, options
        self.columns, self.part = 0, 1.0

    @torch.no_grad()
    def answer(self, prompts: Sequence[ShortPrompt], width: int) -> list[Tensor]:
        """Return the new tokens of each prompt, int64 (T,), where a full one has about `width` columns."""
        self.columns = max(int(self.part * self.prompts * width), 1)
        answers: list[Tensor | None] = [None] * len(prompts)
        waiting = list(self._batches(prompts))[::-1]
        while waiting:
            batch, shares = waiting.pop()
            output = self._try([prompts[row] for row in batch], shares)
            if output is None:
                self.part /= 2
                half = len(batch) // 2
                waiting += [(batch[half:], shares), (batch[:half], shares)]
                continue
            for row, new in zip(batch, output, strict=True):
                answers[row] = new
        return [answer for answer in answers if answer is not None]

    def _try(self, prompts: Sequence[ShortPrompt], shares: bool) -> Tensor | None:
        """Return the new tokens (B, T); None where memory ran out for several prompts."""
        try:
            inputs = join_prompts(self.backbone, prompts)
            owner = torch.tensor(_numbers([p.begins_like if shares else row for row, p in enumerate(prompts)]))
            with self.backbone.reading():
                return generate_sharing(self.backbone.model, inputs, owner, **self.options)
        except RuntimeError as error:
            if len(prompts) == 1 or not out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        return None

    def _batches(self, prompts: Sequence[ShortPrompt]) -> Iterator[tuple[list[int], bool]]:
        """Yield rows that are answered together, and whether those that begin alike share their beginning."""
        groups: dict[tuple[int, frozenset[str]], list[int]] = {}
        for row, prompt in enumerate(prompts):
            beginning = prompt.beginning if can_share(self.backbone.model) else 0
            # Prompts without an image have other arguments.
            groups.setdefault((beginning, frozenset([*prompt.columns, *prompt.images])), []).append(row)
        apart: dict[frozenset[str], list[int]] = {}
        for (beginning, kind), rows in groups.items():
            kinds = len({prompts[row].begins_like for row in rows})
            whole = sum(len(prompts[row]) for row in rows)
            if beginning and whole - (len(rows) - kinds) * beginning < _PAYS * whole:
                yield from ((batch, True) for batch in self._together(prompts, rows, beginning))
            else:
                apart.setdefault(kind, []).extend(rows)
        for rows in apart.values():
            yield from ((batch, False) for batch in self._alike(prompts, rows))

    def _together(self, prompts: Sequence[ShortPrompt], rows: Sequence[int], beginning: int) -> Iterator[list[int]]:
        """Yield batches of prompts of which several begin alike, those that do one behind the other."""
        number = dict(zip(rows, _numbers([prompts[row].begins_like for row in rows]), strict=True))
        most = max(len(prompts[row]) for row in rows)
        batch: list[int] = []
        begun: set[int] = set()
        for row in sorted(rows, key=lambda row: (number[row], len(prompts[row]))):
            read = len(begun | {number[row]}) * beginning + (len(batch) + 1) * (most - beginning)
            if batch and (read > self._columns or (len(batch) + 1) * (most + self._new) > self.columns):
                yield batch
                batch, begun = [], set()
            batch.append(row)
            begun.add(number[row])
        if batch:
            yield batch

    def _alike(self, prompts: Sequence[ShortPrompt], rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of prompts of about the same length."""
        batch: list[int] = []
        real = 0
        for row in sorted(rows, key=lambda row: len(prompts[row])):
            length = len(prompts[row])
            width = (len(batch) + 1) * length
            too_many = (len(batch) + 1) * (length + self._new) > self._columns
            if batch and (too_many or width > _PADDING * (real + length)):
                yield batch
                batch, real = [], 0
            batch.append(row)
            real += length
        if batch:
            yield batch

    @property
    def _new(self) -> int:
        return int(self.options.get("max_new_tokens", 0))

    @property
    def _columns(self) -> int:
        on_cpu = self.backbone.model.device.type == "cpu"
        return min(self.columns, CPU_COLUMNS) if on_cpu else self.columns


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device's memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def image_rows(backbone: Backbone, slots: Slots, video: Tensor | None) -> Tensor:
    """Return the prompt of each image, images first and videos behind them, as encoder outputs list them."""
    if video is None:
        return slots.rows
    order = video.to(slots.rows.device).byte().argsort(stable=True)
    return slots.rows[order]


def _rows_of(kind: str, output: Any, rows: Tensor) -> list[int]:
    count = len(output.pooler_output)
    return rows[-count:].tolist() if kind == "video" else rows[:count].tolist()


def _of_row(value: Tensor, row: int, length: int) -> Tensor:
    if value.shape[-2] == 1:
        row = 0
    return value[..., row, value.shape[-1] - length :]


def _of_image(value: Any, image: int) -> Any:
    # Planes of features, one list of images each; or one list of images.
    return [plane[image] for plane in value] if isinstance(value[0], list) else value[image]


def _joined(values: list[Any]) -> list[Any]:
    return [list(plane) for plane in zip(*values, strict=True)] if isinstance(values[0], list) else values


def _numbers(values: Sequence[Hashable]) -> list[int]:
    found: dict[Hashable, int] = {}
    return [found.setdefault(value, len(found)) for value in values]
