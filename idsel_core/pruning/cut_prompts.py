"""What a cache knows of the shortened prompts that filled it, and of what stands behind them."""

from __future__ import annotations

import dataclasses
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone
from idsel_core.backbones._shared.caches import cached_rows
from idsel_core.backbones._shared.prompts import real_columns
from idsel_core.backbones._shared.tensors import pixel_key
from idsel_core.pruning.arguments import setting_of
from idsel_core.pruning.records import ImageRecord

_NAMES: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def name_of(model: Any) -> str:
    """Return a name of a model that no other one has, copies of it included."""
    return _NAMES.setdefault(model, uuid.uuid4().hex)


@dataclass(frozen=True, eq=False)
class CutPrompts:
    """The R prompts in a cache, and how they were shortened.

    Attributes
    ----------
    model : str
        The model that filled the cache, as `name_of` calls it.
    origin : Tensor
        Which prompt of the call that filled the cache each row is a copy of, int64 (R,).
    given, real : Tensor
        The prompts as the caller gave them, int64 (R, L), and which columns are no padding, bool (R, L).
    images : Tensor
        Which of these columns are placeholders, bool (R, L).
    short, seen : Tensor
        The prompts as the model read them, int64 (R, W), and which columns are no padding, bool (R, W).
    ends : Tensor
        The position, as of ``generate``, of a token that would follow each of these columns, int64 (R, W).
    later : Tensor
        Which columns behind the prompts are no padding, as far as that is known, bool (R, T).
    said : Tensor
        The tokens of these columns, int64 (R, T), -1 where they are not known.
    pixels : Tensor, optional
        A number that depends on the pixels, int64 (1,), of prompts that a cache holds.
    keeps_positions : bool
        Whether tokens kept the positions that they had in the full prompts.
    records : tuple[tuple[int, ImageRecord], ...]
        The row and the record of each image.
    searched : bool
        Whether what is behind the prompts are the beams of a search.
    trouble : str
        Why nothing can go on from the cache, or "".
    """

    model: str
    origin: Tensor
    given: Tensor
    real: Tensor
    images: Tensor
    short: Tensor
    seen: Tensor
    ends: Tensor
    later: Tensor
    said: Tensor
    keeps_positions: bool
    pixels: Tensor | None = None
    records: tuple[tuple[int, ImageRecord], ...] = ()
    searched: bool = False
    trouble: str = ""

    @property
    def width(self) -> int:
        """Columns of the prompts as the model read them, W."""
        return self.short.shape[1]

    def __len__(self) -> int:
        return len(self.short)

    def take(self, rows: Tensor) -> CutPrompts:
        """Return the prompts of these rows, int64, with repetition where a prompt has copies."""
        rows = rows.to(self.short.device)
        tensors = ("origin", "given", "real", "images", "short", "seen", "ends", "later", "said")
        records = tuple(
            (place, record) for place, row in enumerate(rows.tolist()) for owner, record in self.records if owner == row
        )
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in tensors}, records=records)

    def cropped(self, columns: int) -> CutPrompts:
        """Return the prompts without their last columns, which must be text."""
        same = columns < min(self.width, self.given.shape[1]) and all(
            torch.equal(whole[:, -columns:], short[:, -columns:])
            for whole, short in ((self.given, self.short), (self.real, self.seen))
        )
        if not same or bool(self.images[:, -columns:].any()):
            return dataclasses.replace(self, trouble="was cropped so far that an image may be gone")
        names = ("given", "real", "images", "short", "seen", "ends")
        left = {name: getattr(self, name)[:, :-columns] for name in names}
        return dataclasses.replace(self, **left, later=self.later[:, :0], said=self.said[:, :0])

    def known_later(self, columns: int) -> Tensor:
        """Return which of so many columns behind the prompts are no padding, as far as that is known, bool (R, T)."""
        known = self.later[:, :columns]
        return torch.nn.functional.pad(known, (0, columns - known.shape[1]), value=True)

    def known_said(self, columns: int) -> Tensor:
        """Return the tokens of so many columns behind the prompts, int64 (R, T), -1 where they are not known."""
        known = self.said[:, :columns]
        return torch.nn.functional.pad(known, (0, columns - known.shape[1]), value=-1)


def cut_prompts(
    backbone: Backbone, inputs: Mapping[str, Any], short: Mapping[str, Any], generating: bool, positions: str
) -> CutPrompts:
    """Return what a cache shall know that is filled by a shortened call.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    inputs, short : Mapping[str, Any]
        Arguments of the call before and after `Backbone.shorten`, which was its last call.
    generating : bool
        Whether the call is one of ``generate``.
    positions : {"compact", "keep"}
        How the remaining tokens are numbered.
    """
    given, ids = inputs["input_ids"], short["input_ids"]
    seen, real = (
        real_columns(arguments["input_ids"], arguments.get("attention_mask")) for arguments in (short, inputs)
    )
    return CutPrompts(
        model=name_of(backbone.model),
        origin=torch.arange(len(ids), device=ids.device),
        given=given,
        real=real,
        images=backbone.placeholders(given),
        short=ids,
        seen=seen,
        ends=backbone.next_positions(short, generating).expand(len(ids), -1),
        later=seen[:, :0],
        said=ids[:, :0],
        keeps_positions=positions == "keep",
    )


def pixels_number(backbone: Backbone, inputs: Mapping[str, Any]) -> Tensor:
    """Return a number that depends on the pixels of a call, int64 (1,)."""
    given = [inputs[name] for name in backbone.pixel_inputs if inputs.get(name) is not None]
    return torch.stack([pixel_key(pixels[None]) for pixels in given]).sum(0)


def answered(
    prompts: CutPrompts, read: Tensor, said: Tensor, answer: Tensor | None, words: Tensor | None
) -> CutPrompts:
    """Return what a cache knows after a call.

    Parameters
    ----------
    prompts : CutPrompts
        What it knew, a row for each prompt.
    read : Tensor
        Which columns behind the prompts are no padding, those that the call read among them, bool (B, T).
    said : Tensor
        The tokens of these columns, int64 (B, T), -1 where they are not known.
    answer, words : Tensor, optional
        What was generated, int64 (R, A), where R is a multiple of B, and which of it is no padding, bool (R, A).
    """
    if answer is None or words is None:
        return dataclasses.replace(prompts, later=read, said=said)
    copies = len(answer) // len(prompts)
    if copies > 1:
        prompts = prompts.take(torch.arange(len(prompts)).repeat_interleave(copies))
        read, said = read.repeat_interleave(copies, 0), said.repeat_interleave(copies, 0)
    later = torch.cat([read, words.to(read.device)], 1)
    return dataclasses.replace(prompts, later=later, said=torch.cat([said, answer.to(said)], 1))


def answer_words(model: Any, inputs: Mapping[str, Any], answer: Tensor) -> Tensor:
    """Return which tokens of answers were said, and are no padding behind the answers that ended first, bool (R, A).

    An answer ends with a token that ends answers, which was said, or where a stopping criterion or a stop string ended
    it. Behind the latter, sequences do not tell padding from a padding token that was said. If padding is the only
    token that ends answers, the first one counts as said; otherwise none does but in the answers with the fewest at
    their end, which went on to the last column.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    inputs : Mapping[str, Any]
        Arguments of ``generate``.
    answer : Tensor
        What was generated, int64 (R, A).
    """
    ends = setting_of(model, dict(inputs), "eos_token_id")
    if ends is None:
        return torch.ones_like(answer, dtype=torch.bool)
    ends = torch.as_tensor(ends, device=answer.device).reshape(-1)
    ended = torch.isin(answer, ends)
    words = ended.cumsum(1) - ended.long() == 0
    pad = setting_of(model, dict(inputs), "pad_token_id")
    pad = int(ends[0] if pad is None else pad)
    stops = bool(inputs.get("stopping_criteria")) or setting_of(model, dict(inputs), "stop_strings") is not None
    if not stops or ends.tolist() == [pad]:
        return words
    # (R, A): the run of such tokens at the end, which is said where it is shortest, because one answer always goes on.
    run = (answer == pad).flip(1).long().cumprod(1).flip(1)
    count = run.sum(1, keepdim=True)
    return words & ~((run > 0) & (count > count.min()))


def fitted(prompts: CutPrompts, cache: Any) -> CutPrompts:
    """Return what is known of each row of a cache, which may hold copies of each prompt."""
    copies = cached_rows(cache) // max(1, len(prompts))
    return prompts if copies <= 1 else prompts.take(torch.arange(len(prompts)).repeat_interleave(copies))
