"""The columns of a batch of prompts while some of them are dropped and others are merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.prompts import surviving_columns
from idsel_core.methods._shared.in_llm import Choice
from idsel_core.methods._shared.ragged import sort_indices


class ColumnLine:
    """The columns of B prompts in a line, merged tokens at their places, and which of them stay.

    Parameters
    ----------
    real : Tensor
        bool (B, L); false at padding.
    rows, columns : Tensor
        Prompt of each image, and where its tokens are; int64 (I,) and (I, N), -1 at padding.
    choice : Choice
        Of I images.
    """

    def __init__(self, real: Tensor, rows: Tensor, columns: Tensor, choice: Choice) -> None:
        width = real.shape[1]
        picks = sort_indices(choice.order, columns.shape[1])
        kept = columns.gather(1, picks.clamp_min(0)).masked_fill(picks < 0, -1)
        keep = _mark(_mark(real.clone(), rows, columns, False), rows, kept, True)
        place = torch.arange(width, device=real.device).expand(real.shape)
        self.added, self.slots = 0, columns.new_zeros(len(rows), 0)
        used = self.slots
        if choice.merged is not None and choice.merged_counts is not None:
            most = choice.merged.shape[1]
            nth = (rows[:, None] == rows).tril(-1).sum(1, keepdim=True)
            which = torch.arange(most, device=real.device)
            self.slots = width + nth * most + which
            used = self.slots.masked_fill(which >= choice.merged_counts[:, None], -1)
            self.added = int(nth.max() + 1) * most
            real, keep = (
                nn.functional.pad(x, (0, self.added), value=fill) for x, fill in ((real, True), (keep, False))
            )
            keep = _mark(keep, rows, used, True)
            # Behind the last kept column of the image, and slots that are not used in front of everything.
            place = nn.functional.pad(place * (most + 1), (0, self.added), value=-1)
            behind = kept.amax(1, keepdim=True) * (most + 1) + 1 + which
            filled = used >= 0
            place = place.index_put((rows[:, None].expand_as(used)[filled], used[filled]), behind[filled])
        self._line = place.argsort(dim=1, stable=True)
        self._merged = torch.arange(real.shape[1], device=real.device).expand(real.shape) >= width
        self._gone = real & ~keep & ~self._merged
        self._came = keep & self._merged
        self.order = self._line.gather(1, surviving_columns(keep.gather(1, self._line), real.gather(1, self._line)))
        self.real = keep.gather(1, self.order)
        found = torch.full_like(self._line, -1).scatter(
            1, self.order, torch.arange(self.order.shape[1], device=real.device).expand(self.order.shape)
        )
        both = torch.cat([kept, used], 1)
        both = found[rows].gather(1, both.clamp_min(0)).masked_fill(both < 0, -1)
        self.columns = sort_indices(both, self.order.shape[1])[:, : int((both >= 0).sum(1).max())]

    def positions(self, positions: Tensor, compact: bool) -> tuple[Tensor, Tensor]:
        """Return the positions (B, W) of what stays, from those (B, L), and how far what follows moves down (B, 1)."""
        moved = (self._gone.long() - self._came.long()) * compact
        down = torch.zeros_like(moved).scatter(1, self._line, moved.gather(1, self._line).cumsum(1))
        positions = nn.functional.pad(positions, (0, self.added)) - down
        positions = positions.gather(1, self.order).clamp_min(0)
        # Merged tokens count on from the token before them.
        place = torch.arange(self.order.shape[1], device=positions.device).expand(self.order.shape)
        last = place.masked_fill(self._merged.gather(1, self.order), 0).cummax(1).values
        return positions.gather(1, last) + place - last, moved.sum(1, keepdim=True)


def _mark(marks: Tensor, rows: Tensor, columns: Tensor, value: bool) -> Tensor:
    """Set marks (B, L) at columns (I, N) of rows (I,), in place; -1 names none."""
    named = columns >= 0
    marks[rows[:, None].expand_as(columns)[named], columns[named]] = value
    return marks


def dense_positions(real: Tensor) -> Tensor:
    """Return numbers without gaps of the columns (B, W) that are no padding without gaps, int64 (B, W)."""
    # Gaps between positions would tell FlashAttention that a row is packed; layers take theirs from the embeddings.
    return (real.cumsum(1) - 1).clamp_min(0)
