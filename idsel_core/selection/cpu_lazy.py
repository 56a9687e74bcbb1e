"""Backend "lazy": picks on a CPU from few similarities, in blocks that the BLAS library multiplies.

This is the lazy greedy algorithm. Scores never rise within a sweep, so a score that leaves out the latest picks is an
upper bound. Only tokens whose bound reaches a threshold are brought up to date; while a score is at the threshold or
above, the next pick is among them. Then the threshold falls. The effect of a pick on these tokens is a row of
similarities. Rows are computed for the next few candidates together, as many as the picks before made use of, because a
processor multiplies several rows in less time than one after the other. Where many rows will be needed, each pair of
tokens is multiplied beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idsel_core.selection.suppression import Suppression, floors, products

FIRST_ROWS, MOST_ROWS = 8, 32
"""How many candidates' rows are computed together at first, or more where calls take longer; and at most."""
SHORT, LONGEST_TABLE = 96, 2048
"""Number of tokens up to which all similarities are computed at once: of a few, and of an image with a large budget."""
TABLE_ROWS = 128
"""Number of rows of such a table that are multiplied together."""
IN_PLACE = 0.8
"""Share of the tokens above which all are used, because their features then need no copy."""
CALLS, WEIGHT = 2**23, 256
"""Numbers of products that take about as long as the calls for one block of rows, and as one of its weights."""
SMALL = 2**18
"""Number of products of a row up to which a row of all tokens is as fast as one of fewer."""
COPY = 16
"""Number of products with a token's features that take as long as a copy of them."""
CHUNK = 2**22
"""Most numbers of the features that are copied at a time."""
LOOKAHEAD = 64
"""Fewest picks that a threshold should leave room for."""
EVERY = -np.finfo(np.float64).max
"""Threshold that every token reaches."""
Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]


def pick_lazily(image: Suppression, scores: Tensor, dead: Tensor, count: int, restart: bool = False) -> list[int]:
    """Pick the tokens that `pick_in_rounds` picks.

    Parameters
    ----------
    image : Suppression
        One image (B = 1) on the CPU; dead tokens may hold any value.
    scores : Tensor
        float64 (1, N), -inf where `dead`.
    dead : Tensor
        bool (1, N); tokens that cannot be picked.
    count : int
        Number of tokens to pick, at most the number of tokens that are not dead.
    restart : bool
        Whether the scores are set back when they have run out.

    Returns
    -------
    list of int
        The picks.
    """
    run = _Run(image, scores, dead, count, restart)
    threshold = run.first_threshold()
    while run.left:
        run.refresh(threshold)
        best = run.scores.max()
        if best <= run.floor:
            # The exhaustion rule.
            if not (restart and run.begin_sweep()):
                return run.order + run.rest(restart)
            threshold = EVERY  # a new sweep runs out only when all tokens have been brought up to date
            continue
        if best >= threshold:
            run.pick_from(threshold)
        threshold = run.next_threshold()
    return run.order


class _Run:
    """The picks of one image so far, and bounds of the scores of all its tokens."""

    def __init__(self, image: Suppression, scores: Tensor, dead: Tensor, count: int, restart: bool) -> None:
        self.image = image
        self.x, self.inverse = image.x[0], image.inverse[0]  # (N, D), (N,)
        self.scores: Floats = scores[0].clone().numpy()  # (N,); -inf once picked
        self.original = self.scores.copy()
        self.known: Longs = np.zeros(len(self.scores), np.int64)  # (N,); number of effective picks accounted for
        self.tokens: Longs = np.flatnonzero(~dead[0].numpy())
        self.floor = float(floors(scores)) if restart else 0.0
        self.order: list[int] = []
        self.count = count
        self.effective = 0  # number of picks that lower other scores
        self.picks = self.x.new_empty(count, self.x.shape[1])  # unit features of these
        self.values = np.empty(count)  # their scores when they were picked
        self.decline = 1.0
        self.rows: dict[int, Floats] = {}  # strengths (P,) of some tokens, by their places among those not dead
        self.table: _Table | None = None  # of all these

    @property
    def left(self) -> int:
        return self.count - len(self.order)

    def first_threshold(self) -> float:
        """Return the score that a few more tokens reach than are left to pick."""
        if self._products(len(self.tokens)) <= SMALL or len(self.tokens) <= min(3 * self.left, LONGEST_TABLE):
            return EVERY  # fewer tokens are not faster
        size = min(5 * self.left // 4 + 1, len(self.tokens) - len(self.order))
        return float(np.partition(self.scores, -size)[-size])

    def _products(self, tokens: int) -> int:
        """Return how many products take as long as a row of so many tokens and its weights."""
        return tokens * (self.x.shape[1] + WEIGHT)

    def next_threshold(self) -> float:
        """Return a threshold below the best score that is up to date, or else below the highest bound."""
        if len(self.tokens) <= min(4 * self.left, LONGEST_TABLE):
            return EVERY
        fresh = self.scores[self.known == self.effective]
        best = float(fresh.max()) if len(fresh) else -math.inf
        if best == -math.inf:
            best = float(self.scores.max())
        return max(best * self.decline, self.floor)

    def refresh(self, threshold: float) -> None:
        """Bring all tokens up to date whose bound reaches a threshold."""
        stale = np.flatnonzero((self.scores >= threshold) & (self.known < self.effective))
        if not len(stale):
            return
        if len(stale) > IN_PLACE * len(self.tokens):
            self._lower(self.tokens)
            return
        # Tokens that were never up to date in this sweep are most, and need all its picks.
        oldest = self.known[stale] == self.known[stale].min()
        for group in (stale[oldest], stale[~oldest]):
            if len(group):
                self._lower(group)

    def _lower(self, tokens: Longs) -> None:
        oldest = self.known[tokens].min()
        picks, values = self.picks[oldest : self.effective], self.values[oldest : self.effective]
        steps = np.arange(oldest, self.effective)[:, None]  # (T, 1)
        size = max(1, CHUNK // self.x.shape[1])
        for start in range(0, len(self.x), size):
            block = slice(start, start + size)
            part = tokens[slice(*np.searchsorted(tokens, (start, start + size)))]  # (P,)
            if not len(part):
                continue
            if len(picks) * len(self.x[block]) <= (len(picks) + COPY) * len(part):
                places = torch.from_numpy(part - start)
                strengths = self._strengths(picks, self.x[block], self.inverse[block], places)  # (T, P)
            else:
                strengths = self._strengths(picks, *self._features(part))  # (T, P)
            missing, now = steps >= self.known[part], self.scores[part]  # (T, P), (P,)
            if not missing.all():
                strengths = np.where(missing, strengths, 0 if self.image.update == "subtract" else 1)
            if self.image.update == "subtract":
                now -= np.einsum("t,tp->p", values, strengths)
            else:
                np.multiply(now, strengths.prod(axis=0), out=now, where=now > 0)
            self.scores[part] = now
        self.known[tokens] = self.effective

    def _features(self, tokens: Longs) -> tuple[Tensor, Tensor]:
        """Return the features (P, D) and 1 / |x| (P,) of tokens (P,), without a copy where they are neighbours."""
        if tokens[-1] - tokens[0] == len(tokens) - 1:
            place = slice(tokens[0], tokens[-1] + 1)
            return self.x[place], self.inverse[place]
        chosen = torch.from_numpy(tokens)
        return self.x.index_select(0, chosen), self.inverse.index_select(0, chosen)

    def _unit(self, tokens: Longs) -> Tensor:
        """Return the unit features (T, D) of tokens (T,)."""
        chosen = torch.from_numpy(tokens)
        return self.x.index_select(0, chosen).mul_(self.inverse.index_select(0, chosen)[:, None])

    def _strengths(self, unit: Tensor, x: Tensor, inverse: Tensor, places: Tensor | None = None) -> Floats:
        """Return the strengths (T, P) at which tokens, given by unit features (T, D), suppress others (P, D).

        Of the others, only those at some places if these are given, int64 (Q,): the result is (T, Q) then.
        """
        cosines = row_products(unit, x).mul_(inverse)
        if places is not None and len(places) < len(x):
            cosines = cosines.index_select(1, places)
        return self._weighed(cosines)

    def _weighed(self, cosines: Tensor) -> Floats:
        """Return the strengths (T, P) of cosines (T, P)."""
        strengths: Floats = self.image.strengths(cosines).numpy()[0]  # of the only image
        return strengths

    def pick_from(self, threshold: float) -> None:
        """Pick tokens until no score reaches the threshold; all that reach it must be up to date."""
        tokens = np.flatnonzero(self.scores >= threshold)
        rows: dict[int, Floats] = {}  # strengths (P,) of some tokens, by their places among the P tokens
        table: _Table | None = None
        everything = len(tokens) > IN_PLACE * (len(self.tokens) - len(self.order))
        if everything:
            self.refresh(EVERY)
            tokens, threshold, rows, table = self.tokens, EVERY, self.rows, self.table
        scores = self.scores[tokens]  # (P,)
        gone = np.flatnonzero(scores == -math.inf)
        scores[gone] = 0  # never picked, because no score at the floor is, and a factor of 0 keeps it
        features: tuple[Tensor, Tensor] | None = None
        picked: list[int] = []
        values: list[float] = []
        fewest = min(max(1, CALLS // self._products(len(tokens))), MOST_ROWS)
        width = max(fewest, FIRST_ROWS)
        # Whether nothing tells yet which of the tokens comes after the first.
        tied = not self.order and int(np.count_nonzero(scores == scores.max())) > width
        left, hits = self.left, 0
        while len(picked) < left:
            best = int(scores.argmax())
            value = float(scores[best])
            if value < threshold or value <= self.floor:
                break
            if best not in rows and table is None:
                features = features or self._features(tokens)
                needed = left - len(picked)
                if not rows and self._is_table_faster(len(tokens), needed, tied):
                    table = _Table(*features, self._weighed)
                else:
                    if picked:
                        width = min(max(fewest, 2 * hits), MOST_ROWS)
                    elif tied:
                        width = 1
                    rows |= self._rows_of_candidates(tokens, scores, rows, min(width, 5 * needed // 4 + 1), features)
                hits = 0
            hits += 1
            picked.append(best)
            values.append(value)
            self._suppress(scores, best, rows.pop(best) if table is None else table.row(best))
        if everything:
            self.table = table
        scores[gone] = scores[picked] = -math.inf
        self._keep(tokens, picked, values, scores)
        if picked:
            lowest = max(float(scores.max()), threshold)
            share = max(lowest, self.floor) / values[0]
            self.decline = max(share, 0.1) ** (max(LOOKAHEAD, len(picked)) / len(picked))

    def _is_table_faster(self, tokens: int, needed: int, tied: bool) -> bool:
        """Tell whether all similarities of some tokens take less time than the rows that picks will need."""
        share = 9 if tied else 4  # the more rows have to wait for each other, the fewer a table outweighs
        return tokens <= SHORT or len(self.tokens) == tokens <= min(share * needed, LONGEST_TABLE)

    def _rows_of_candidates(
        self, tokens: Longs, scores: Floats, known: Collection[int], width: int, features: tuple[Tensor, Tensor]
    ) -> dict[int, Floats]:
        """Return the strengths (P,) of likely next picks, by their places among the tokens (P,)."""
        alive = int(np.count_nonzero(scores > 0))
        ranking = np.argsort(-scores, kind="stable")[:alive]
        block = [place for place in ranking[: width + len(known)].tolist() if place not in known][:width]
        return dict(zip(block, self._strengths(self._unit(tokens[block]), *features), strict=True))

    def _suppress(self, scores: Floats, pick: int, strengths: Floats) -> None:
        # The update rule, as in `Suppression.suppress`.
        if self.image.update == "subtract":
            scores -= scores[pick] * strengths
        else:
            scores *= strengths
        scores[pick] = 0

    def _keep(self, tokens: Longs, picked: list[int], values: list[float], scores: Floats) -> None:
        after = self.effective + len(picked)
        chosen = tokens[picked]
        self.order += chosen.tolist()
        self.picks[self.effective : after] = self._unit(chosen)
        self.values[self.effective : after] = values
        self.scores[tokens] = scores
        self.effective = self.known[tokens] = after

    def begin_sweep(self) -> bool:
        """Set the scores of the tokens that are left back; return False if even these have run out."""
        alive = self.scores > -math.inf
        self.scores[alive] = self.original[alive]
        self.known[alive] = self.effective
        self.decline = 1.0
        return bool(self.scores.max() > self.floor)

    def rest(self, restart: bool) -> list[int]:
        """Return the last picks, none of which lowers a score, or whose effect the next restart undoes."""
        alive = len(self.tokens) - len(self.order)
        while not restart:
            falling = np.sort(self.scores)[::-1]
            stale = (self.known < self.effective) & (self.scores >= falling[self.left - 1])
            if not stale.any():
                break
            self.refresh(float(falling[min(2 * self.left, alive) - 1]))
        return np.argsort(-self.scores, kind="stable")[: self.left].tolist()


class _Table:
    """The strengths at which P tokens suppress each other, in blocks of rows without the pairs of the blocks before.

    Parameters
    ----------
    x, inverse : Tensor
        Features (P, D) and 1 / |x| (P,).
    weighed : callable
        Makes strengths of cosines.
    """

    def __init__(self, x: Tensor, inverse: Tensor, weighed: Callable[[Tensor], Floats]) -> None:
        self.blocks: list[Floats] = []  # of rows start to start + R the columns from start on, (R, P - start)
        for start in range(0, len(x), TABLE_ROWS):
            rows = slice(start, start + TABLE_ROWS)
            cosines = row_products(x[rows], x[start:]).mul_(inverse[rows, None]).mul_(inverse[start:])
            self.blocks.append(weighed(cosines))

    def row(self, place: int) -> Floats:
        """Return the strengths (P,) at which one token suppresses all."""
        own, inside = divmod(place, TABLE_ROWS)
        before = [block[:, place - k * TABLE_ROWS] for k, block in enumerate(self.blocks[:own])]
        return np.concatenate([*before, self.blocks[own][inside]])


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (T, P) of the rows of (T, D) and (P, D).

    BLAS libraries share out the rows of what they write among threads, so the longer side is written as rows.
    """
    if len(a) < len(b) and torch.get_num_threads() > 1:
        return products(b, a).mT
    return products(a, b)
