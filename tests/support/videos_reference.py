"""The formulas of methods that select tokens of videos, one video at a time in float64 NumPy, token by token.

They are written from the papers, and where a paper leaves a step open, from the order of the authors' steps. A video is
a dict of ``features`` (N, D), ``frames`` (N,), ``grid`` (N, 2) and ``received_attention`` (N,).
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np

from tests.support.peers_reference import Kept, best, in_proportion, unit


def by_frame(video: dict) -> list[dict[tuple[int, int], int]]:
    """Return, for each frame, the token at each cell of the grid."""
    found: list[dict[tuple[int, int], int]] = [{} for _ in range(int(max(video["frames"])) + 1)]
    for token, (frame, cell) in enumerate(zip(video["frames"], video["grid"].tolist(), strict=True)):
        if cell[0] >= 0:
            found[int(frame)][tuple(cell)] = token
    return [dict(sorted(frame.items())) for frame in found]


def off_grid(video: dict, count: int) -> list[int]:
    """Return the tokens off the grid that are kept."""
    off = [token for token, cell in enumerate(video["grid"]) if cell[0] < 0]
    on = len(video["grid"]) - len(off)
    return off if count > len(off) else off[: max(count - on, 0)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def whole_or(read: np.ndarray, video: dict, tokens: list[int]) -> np.ndarray:
    """Return what is read of the kept tokens: new features, unless all tokens are kept."""
    return (video["features"] if len(tokens) == len(video["features"]) else read)[sorted(tokens)]


# ------------------------------------------------------------------------------------------------ DyCoke


def dycoke(video: dict, count: int) -> Kept:
    x, frames, off = video["features"], by_frame(video), off_grid(video, count)
    scores = np.full(len(x), 255.0)
    for number, frame in enumerate(frames):
        earlier = number - {0: 4, 1: 1, 2: 2, 3: 1}[number % 4]
        for cell, token in frame.items():
            if earlier >= 0 and cell in frames[earlier]:
                scores[token] = 1 - cosine(x[token], x[frames[earlier][cell]])
    count -= len(off)
    firsts = [token for frame in frames[::4] for token in frame.values()]
    kept, gap = best(scores, min(count, len(firsts)), sorted(firsts))
    if count <= len(firsts) and kept and scores[kept[-1]] == 255:
        gap = math.inf
    others = [frame for number, frame in enumerate(frames) if number % 4]
    quotas = in_proportion(count - len(kept), [len(frame) for frame in others])
    for frame, quota in zip(others, quotas, strict=True):
        chosen, other = best(scores, quota, list(frame.values()))
        kept, gap = kept + chosen, min(gap, other)
    return Kept(off + kept, gap, notes={"scores": scores})


def dycoke_program(video: dict, rate: float) -> Kept:
    """The authors' order of steps, for a video without a newline whose frames have one size."""
    x = np.stack([[video["features"][token] for token in frame.values()] for frame in by_frame(video)])
    count, size = x.shape[:2]
    alike = [(unit(x[i]) * unit(x[i + 1])).sum(-1) for i in range(0, count - 1, 2)]
    keep, gap, kept = int((1 - rate) * size), math.inf, {}
    for i in range(0, count - 1, 2):
        kept[i] = list(range(size))
        kept[i + 1], other = best(-alike[(i - 2) // 2], keep)
        gap = min(gap, other)
    for i in range(0, count - 4, 4):
        kept[i + 2], other = best(-(unit(x[i]) * unit(x[i + 2])).sum(-1), keep)
        gap = min(gap, other)
    return Kept([frame * size + place for frame, places in kept.items() for place in places], gap)


# ------------------------------------------------------------------------------------------------ density peaks


def peaks(x: np.ndarray, neighbours: int) -> np.ndarray:
    distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / math.sqrt(x.shape[1])
    density = [math.exp(-np.mean(np.sort(row)[:neighbours] ** 2)) for row in distance]
    rank = sorted(range(len(x)), key=lambda i: (-density[i], i))
    gaps = np.empty(len(x))
    for place, i in enumerate(rank):
        gaps[i] = min((distance[i, j] for j in rank[:place]), default=distance.max())
    return np.array(density) * gaps


# ------------------------------------------------------------------------------------------------ FastVID


def segments(means: np.ndarray, least: int, threshold: float) -> tuple[list[list[int]], float]:
    alike = [cosine(a, b) for a, b in itertools.pairwise(means)]
    cuts, gap = best(-np.array(alike), min(least - 1, len(alike)))
    gap = min([gap, *(abs(value - threshold) for value in alike)])
    cuts = {*cuts, *(i for i, value in enumerate(alike) if value < threshold)}
    found: list[list[int]] = [[0]]
    for frame in range(1, len(means)):
        if frame - 1 in cuts:
            found.append([])
        found[-1].append(frame)
    return found, gap


def fastvid(
    video: dict,
    count: int,
    c: int = 8,
    tau: float = 0.9,
    d: float = 0.4,
    p: int = 4,
    alpha: float = 0.6,
    share: float | Fraction | None = None,
) -> Kept:
    """With a `share`, the authors' counts."""
    x, attention, off = video["features"], video["received_attention"], off_grid(video, count)
    frames = [list(frame.values()) for frame in by_frame(video)]
    sizes, count = [len(frame) for frame in frames], count - len(off)
    groups, gap = segments(np.array([x[frame].mean(0) for frame in frames]), c, tau)
    quotas = in_proportion(count, sizes) if share is None else [int(size * share) for size in sizes]
    own = [int(quota * d) for quota in quotas]
    salient = [quota - less for quota, less in zip(quotas, own, strict=True)]
    context = [0] * len(frames)
    for group in groups:
        anchors = group[::-1][::p][::-1]
        collected = sum(own[f] for f in group)
        if share is not None:
            for f in anchors:
                context[f] = collected // len(anchors)
            continue
        room = [sizes[f] - salient[f] for f in anchors]
        fits = min(collected, sum(room))
        for f, number in zip(anchors, in_proportion(fits, [1] * len(anchors), room), strict=True):
            context[f] = number
        more = collected - fits
        extra = in_proportion(more, [1] * len(group), [sizes[f] - salient[f] - context[f] for f in group])
        for f, number in zip(group, extra, strict=True):
            salient[f] += number
    read, attended, merged = x.copy(), [], []
    for f, frame in enumerate(frames):
        chosen, other = best(attention, salient[f], frame)
        attended, gap = attended + chosen, min(gap, other / attention.max())
    for group in groups:
        for f in group:
            rest = [token for token in frames[f] if token not in attended]
            if not context[f]:
                continue
            chosen, other = best(peaks(x[rest], 4), context[f])
            targets, gap = [rest[i] for i in chosen], min(gap, other)
            pool = rest if context[f] <= own[f] else [t for g in group for t in frames[g] if t not in attended]
            members: dict[int, list[int]] = {target: [] for target in targets}
            for token in pool:
                likeness = sorted((-cosine(x[token], x[target]), place) for place, target in enumerate(targets))
                members[targets[likeness[0][1]]].append(token)
                if len(likeness) > 1:
                    gap = min(gap, likeness[1][0] - likeness[0][0])
            for target, joined in members.items():
                weight = max(1 / (len(joined) + 1), alpha)
                if joined:
                    read[target] = weight * x[target] + (1 - weight) * x[joined].mean(0)
            merged += targets
    tokens = off + attended + merged
    return Kept(tokens, gap, read=whole_or(read, video, tokens), notes={"salient": salient, "context": context})


# ------------------------------------------------------------------------------------------------ HoliTom


def cluster(x: np.ndarray, number: int, beta: float, k: int) -> tuple[list[int], np.ndarray, float]:
    """Return the centres, their features after the others joined, and the smallest gap of a decision."""
    if number == 0:
        return [], x[:0], math.inf
    centres, gap = best(peaks(x, min(k, number)), number)
    centres = sorted(centres)
    members: dict[int, list[int]] = {centre: [] for centre in centres}
    for i in set(range(len(x))) - set(centres):
        ranking = sorted((float(np.linalg.norm(x[i] - x[centre])), centre) for centre in centres)
        members[ranking[0][1]].append(i)
        if len(ranking) > 1:
            gap = min(gap, ranking[1][0] - ranking[0][0])
    joined = [
        beta * x[centre] + (1 - beta) * x[others].mean(0) if others else x[centre] for centre, others in members.items()
    ]
    return centres, np.array(joined), gap


def windows(still: list[set], frames: int) -> tuple[list[list[int]], int]:
    """Return the cut that saves most, of all cuts; of equal ones that with the shortest windows, the last one first."""
    found = []
    for cuts in itertools.product((False, True), repeat=frames - 1):
        parts: list[list[int]] = [[0]]
        for frame, cut in enumerate(cuts, 1):
            if cut:
                parts.append([])
            parts[-1].append(frame)
        saved = sum(len(set.intersection(*still[w[0] : w[-1]])) * (len(w) - 1) for w in parts if len(w) > 1)
        found.append((-saved, [len(window) for window in parts[::-1]], parts))
    least = min(found, key=lambda one: one[:2])
    return least[2], -least[0]


def holitom(
    video: dict,
    count: int,
    tau: float = 0.8,
    beta: float = 0.6,
    d: float = 0.0,
    k: int = 7,
    share: float | Fraction | None = None,
) -> Kept:
    """With a `share`, the authors' counts."""
    x, attention, off = video["features"], video["received_attention"], off_grid(video, count)
    frames, count, gap = by_frame(video), count - len(off), math.inf
    alike = [
        {cell: cosine(x[one[cell]], x[other[cell]]) for cell in one if cell in other}
        for one, other in itertools.pairwise(frames)
    ]
    gap = min([gap, *(abs(value - tau) for row in alike for value in row.values())])
    cut, saved = windows([{cell for cell, value in row.items() if value > tau} for row in alike], len(frames))
    total = sum(map(len, frames))
    left = total - saved
    static = {
        window[0]: [cell for cell in frames[window[0]] if all(alike[f].get(cell, -2) > tau for f in window[:-1])]
        for window in cut
        if len(window) > 1
    }
    alone: list[int] = []
    if count > left and share is None:
        later = {frames[f][cell]: alike[f - 1][cell] for w in cut if len(w) > 1 for f in w[1:] for cell in static[w[0]]}
        scores = np.full(len(x), -np.inf)
        for token, value in later.items():
            scores[token] = -value
        alone, other = best(scores, count - left, sorted(later))
        gap = min(gap, other)
    parts: list[tuple[list[int], np.ndarray | None]] = []
    for window in cut:
        if len(window) > 1:
            cells = static[window[0]]
            chains = [[frames[f][cell] for f in window if frames[f][cell] not in alone] for cell in cells]
            means = np.array([x[chain].mean(0) for chain in chains]).reshape(len(cells), x.shape[1])
            parts.append(([frames[window[0]][cell] for cell in cells], means))
    for window in cut:
        for f in window:
            parts.append(([token for cell, token in frames[f].items() if cell not in static.get(window[0], [])], None))
    if share is None:
        most = min(count, left)
        numbers = in_proportion(most, [len(part) for part, _ in parts])
    else:
        ratio = min(share / Fraction(left, total), 1)
        numbers = [math.ceil(len(part) * ratio) if means is None else round(len(part) * ratio) for part, means in parts]
    read, tokens = x.copy(), [*off, *alone]
    for (part, means), number in zip(parts, numbers, strict=True):
        rest, values = part, means
        if means is None:
            kept, other = best(attention, round(number * (1 - d)), part)
            gap = min(gap, other / attention.max())
            tokens, number, rest = tokens + kept, number - len(kept), [token for token in part if token not in kept]
            values = x[rest]
        centres, joined, other = cluster(values, number, beta, k)
        gap = min(gap, other)
        for centre, feature in zip(centres, joined, strict=True):
            read[rest[centre]] = feature
            tokens.append(rest[centre])
    return Kept(tokens, gap, read=whole_or(read, video, tokens), notes={"saved": saved, "windows": cut})
