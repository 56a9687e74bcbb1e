"""The peers' formulas, one image at a time in float64 NumPy, slowly: nothing incremental, nothing batched, no torch.

Greedy methods are given as the scores of the next pick (`NEXT`), so that a test can also replay picks that a near tie
made different. The others give what they keep (`KEPT`), with the smallest gap between what was taken and what was not.
Merging methods give the merged encoder features as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np


@dataclass
class Kept:
    """Tokens kept, the smallest gap of a decision, and merged features in the order in which they are read.

    They are what enters the projector, or what the language model reads.
    """

    tokens: list[int]
    gap: float = math.inf
    features: np.ndarray | None = None
    read: np.ndarray | None = None
    notes: dict = field(default_factory=dict)


def unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def best(scores: np.ndarray, count: int, among: list[int] | None = None) -> tuple[list[int], float]:
    """Return the `count` tokens of highest score, first of equals, and the gap to the next one."""
    among = list(range(len(scores))) if among is None else among
    ranking = sorted(among, key=lambda i: (-scores[i], i))
    gap = math.inf
    if 0 < count < len(ranking):
        gap = scores[ranking[count - 1]] - scores[ranking[count]]
    return ranking[:count], gap


# ------------------------------------------------------------------------------------------------ greedy methods


def divprune(image: dict, picks: list[int]) -> np.ndarray:
    distance = 1 - unit(image["features"]) @ unit(image["features"]).T
    if not picks:
        others = distance + np.diag(np.full(len(distance), np.inf))
        return others.min(1) if len(distance) > 1 else np.array([2.0])
    return distance[picks].min(0)


def cdpruner(image: dict, picks: list[int], spent: float = 1e-11) -> np.ndarray:
    """Growth of the determinant, as the variance that the picks leave times squared relevance.

    `spent` is the share of a variance that counts as rounding: a token is then explained by the picks.
    """
    x, r = unit(image["features"]), image["relevance"]
    r = (r - r.min() + 1e-6) / (r.max() - r.min()) if r.max() > r.min() else np.ones_like(r)
    similar = x @ x.T
    variance = np.diag(similar).copy()
    before = variance.copy()
    if picks:
        # The squared distance to the span of the picks, which loses no digits in a tight cluster.
        left, sizes, _ = np.linalg.svd(x[picks].T, full_matrices=False)
        span = left[:, sizes > 1e-7 * sizes.max(initial=1)]
        variance = np.square(x - x @ span @ span.T).sum(1)
    return np.where(variance > spent * before, variance * r**2, -1 / (1 + r))


def coverage(table: np.ndarray, picks: list[int]) -> np.ndarray:
    """What each column adds to the sum over rows of the best value so far, which begins at 0."""
    so_far = np.maximum(table[:, picks].max(1), 0) if picks else np.zeros(len(table))
    return np.array([np.maximum(table[:, i], so_far).sum() - so_far.sum() for i in range(table.shape[1])])


def scope(image: dict, picks: list[int]) -> np.ndarray:
    x = unit(image["encoder_features"])
    return coverage(x @ x.T, picks) * image["cls_attention"]


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def mmtok(image: dict, picks: list[int]) -> np.ndarray:
    words, x = image["word_similarity"].T, unit(image["encoder_features"])
    words = words[np.isfinite(words[:, 0])]
    rows = [softmax(words / 0.02) / len(words), 0.5 * softmax(x @ x.T / 0.2) / len(x)]
    return coverage(np.concatenate(rows), picks)


def mmr(image: dict, picks: list[int], balance: float = 0.5) -> np.ndarray:
    """Importance against the largest cosine with a pick; saliency is the importance."""
    x, s = unit(image["features"]), image["cls_attention"]
    importance = (s - s.min()) / (s.max() - s.min()) if s.max() > s.min() else np.ones_like(s)
    return balance * importance - (1 - balance) * (x @ x[picks].T).max(1) if picks else importance


NEXT = {"mmr": mmr, "divprune": divprune, "cdpruner": cdpruner, "scope": scope, "mmtok": mmtok}


# ------------------------------------------------------------------------------------------------ other methods


def fastervlm(image: dict, count: int) -> Kept:
    return Kept(*best(image["cls_attention"], count))


def vispruner(image: dict, count: int, important: float = 0.5) -> Kept:
    attention, x = image["cls_attention"], unit(image["encoder_features"])
    first = int(count * important)
    ranking, _ = best(attention, len(attention))
    # The order of the whole list matters.
    gap = min((attention[a] - attention[b] for a, b in pairwise(ranking)), default=math.inf)
    kept, rest = ranking[:first], ranking[first:]
    while len(rest) > count - first:
        remove = min(8, len(rest) - (count - first))
        even, odd = rest[::2], rest[1::2]
        alike = {i: max((x[i] @ x[j] for j in odd), default=-math.inf) for i in even}
        falling = sorted(even, key=lambda i: -alike[i])
        gap = min([gap, *(alike[a] - alike[b] for a, b in pairwise(falling))])
        rest = falling[remove:] + odd
    return Kept(kept + rest, gap)


def hiprune(image: dict, count: int, anchors: float = 0.1, wrap: bool = False) -> Kept:
    shallow, deep, grid = image["received_attention@0.375"], image["received_attention"], image["grid"].tolist()
    taken, gap = best(shallow, round(count * anchors / 5))
    columns, near = max(c for _, c in grid) + 1, []
    for token in taken:
        row, column = grid[token]
        if wrap:
            around = [token - 1, token + 1, token - columns, token + columns]
            near += [min(max(i, 0), len(grid) - 1) for i in around]
        else:
            around = [[row - 1, column], [row + 1, column], [row, column - 1], [row, column + 1]]
            near += [grid.index(cell) for cell in around if cell in grid]
    taken = list(dict.fromkeys(taken + near))
    rest, other = best(deep, count - len(taken), [i for i in range(len(deep)) if i not in taken])
    return Kept(taken + rest, min(gap, other))


def hired(image: dict, count: int, slip: bool = False) -> Kept:
    """With crops as (row, column), (-1, -1) for the thumbnail."""
    attention, early = image["cls_attention"], image["cls_attention@0"]
    crops, grid = [tuple(c) for c in image["crops"].tolist()], image["grid"].tolist()
    rows, columns = max(r for r, _ in crops) + 1, max(c for _, c in crops) + 1
    parts = {(-1, -1): []} | {(r, c): [] for r in range(rows) for c in range(columns)}
    for token, crop in enumerate(crops):
        parts[crop].append(token)
    base = parts[(-1, -1)]
    high, wide = max(grid[i][0] for i in base) + 1, max(grid[i][1] for i in base) + 1
    marked, gap = best(early, int(len(base) * 0.5), base)
    share = dict.fromkeys(parts, 0.0)
    for token in marked:
        cell = divmod(base.index(token) * rows * columns // len(base), columns)
        if not slip:
            cell = grid[token][0] * rows // high, grid[token][1] * columns // wide
        share[cell] += 1 / len(marked)
    quota = {(-1, -1): min(int(count * 0.5), len(base))}
    rest = count - quota[-1, -1]
    for part in list(parts)[1:]:
        if not marked:
            share[part] = 1 / (len(parts) - 1)
        quota[part] = min(int(share[part] * rest + 1e-9), len(parts[part]))
    wanted = {part: share[part] * rest for part in parts} | {(-1, -1): quota[-1, -1]}
    while not slip and sum(quota.values()) < count:
        spare = [part for part in parts if quota[part] < len(parts[part])]
        quota[max(spare, key=lambda part: (round(wanted[part] - quota[part], 9), -list(parts).index(part)))] += 1
    kept = []
    for part, members in parts.items():
        chosen, other = best(attention, quota[part], members)
        kept, gap = kept + chosen, min(gap, other)
    return Kept(kept, gap, notes={"quota": list(quota.values())})


def trim(image: dict, count: int, scores: str = "relevance", extra: int = 0) -> Kept:
    count = min(count + extra, len(image[scores]))
    ranking, gap = best(image[scores], count)
    kept = sorted(ranking[: count - 1])
    if count > 1:
        gap = min(gap, best(image[scores], count - 1)[1])
    others = [i for i in range(len(image[scores])) if i not in kept]
    x = image["encoder_features"]
    return Kept(ranking, gap, np.concatenate([x[kept], x[others].mean(0, keepdims=True)]))


def joined(x: np.ndarray, members: list[int], targets: list[int]) -> tuple[dict[int, list[int]], float]:
    """Give each member to the target of highest cosine; return the members of each, and the smallest gap."""
    groups, gap = {target: [] for target in targets}, math.inf
    for member in members if targets else []:
        alike = [x[member] @ x[target] for target in targets]
        groups[targets[int(np.argmax(alike))]].append(member)
        gap = min(gap, best(np.array(alike), 1)[1])
    return groups, gap


def visionzip(image: dict, count: int, share: float = 54 / 64, total: bool = False, cls: bool = True) -> Kept:
    attention, x = image["cls_attention"], image["encoder_features"]
    dominant = math.floor(share * count + 0.5)
    with_cls = cls and dominant > 0
    kept, gap = best(attention, dominant - with_cls)
    rest = [i for i in range(len(x)) if i not in kept]
    contextual = count - dominant
    targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
    others = [i for i in rest if i not in targets]
    groups, other = joined(unit(image["keys"].mean(1)), others, targets)
    merged = [
        (x[i] + x[of_it].mean(0) if of_it else x[i]) if total else x[[i, *of_it]].mean(0) for i, of_it in groups.items()
    ]
    first = [image["cls_features"]] if with_cls else []
    spare, last = best(attention, int(with_cls), others)
    return Kept(
        kept + targets + spare, min(gap, other, last), np.array([*first, *x[sorted(kept)], *merged]), notes=groups
    )


def prumergeplus(image: dict, count: int, share: float = 0.0, near: int = 32) -> Kept:
    """With a `share`, as published: int(N share) attended tokens, as many at a step of int(1 / share), and the sum.

    The authors list the attended tokens, then those at the step over 0 to N - 2, then the tokens that are in neither,
    in raster order. A token in both parts is listed twice, and for each such token the first unlisted token is lost, so
    that the list has N entries. Each of the first entries takes its neighbours from all other entries, and the sum is
    over the entries after them.
    """
    attention, x = image["wide_cls_attention@1"], image["encoder_features"]
    keys = unit(image["keys@1"].reshape(len(x), -1))
    ranking, _ = best(attention, len(x))
    attended, gap = best(attention, int(len(x) * share) if share else count // 2)
    rest, spaced = [i for i in range(len(x)) if i not in attended], count - 1 - len(attended)
    centres = attended + [rest[(2 * i + 1) * len(rest) // (2 * spaced)] for i in range(spaced)]
    if share:
        step = int(1 / share)
        centres = attended + list(range(int(step / 2), len(x) - 1, step))
    again = len(centres) - len(set(centres))
    listed = centres + [j for j in range(len(x)) if j not in centres][again:]
    merged = []
    for entry, i in enumerate(centres):
        other_entries = np.array([j for q, j in enumerate(listed) if q != entry], dtype=int)
        likest, other = best((keys @ keys[i])[other_entries], near)
        merged.append(x[i] + sum((attention[j] * x[j] for j in other_entries[likest]), np.zeros(x.shape[1])))
        gap = min(gap, other)
    others = [i for i in ranking if i not in centres]
    merged.append(sum((attention[j] * x[j] for j in listed[len(centres) :]), np.zeros(x.shape[1])))
    gap = min(gap, best(attention, again + 1, others)[1])
    return Kept(list(dict.fromkeys(centres)) + others[: again + 1], gap, np.array(merged), notes={"centres": centres})


def tome(image: dict, count: int, halves: bool = False) -> Kept:
    x, keys = image["encoder_features"], image["keys"].mean(1)
    groups, gap = [[i] for i in range(len(x))], math.inf
    while len(groups) > count:
        even, odd = groups[::2], groups[1::2]
        a, b = (unit(np.array([keys[group].mean(0) for group in half])) for half in (even, odd))
        alike = a @ b.T
        merges, other = best(alike.max(1), min(len(groups) - count, len(odd)))
        gap = min([gap, other, *(best(alike[i], 1)[1] for i in merges)])
        whole = [list(group) for group in odd]
        for i in merges:
            whole[int(alike[i].argmax())] += even[i]
        groups = [group for i, group in enumerate(even) if i not in merges] + whole
        groups = groups if halves else sorted(groups, key=min)
    return Kept([min(group) for group in groups], gap, np.array([x[group].mean(0) for group in groups]))


def vscan(image: dict, count: int, lossy: bool = False, windows: int = 4) -> Kept:
    shallow, deep, grid = image["cls_attention@0.25"], image["cls_attention"], image["grid"].tolist()
    rows, columns = max(r for r, _ in grid) + 1, max(c for _, c in grid) + 1
    parts: dict[tuple, list[int]] = {}
    for token, (row, column) in enumerate(grid):
        parts.setdefault((row * windows // rows, column * windows // columns), []).append(token)
    local, kept, gap = count // 2, [], math.inf
    for _ in range(local // windows**2 if lossy else local):
        # One more token of each window, the most attended first where they do not all get one.
        following = []
        for members in parts.values():
            left = [i for i in members if i not in kept]
            following += best(shallow, 1, left)[0]
            gap = min(gap, best(shallow, 1, left)[1])
        taken, other = best(shallow, windows**2 if lossy else local - len(kept), following)
        kept, gap = kept + taken, min(gap, other)
    chosen, other = best(deep, count - local, [i for i in range(len(deep)) if i not in kept])
    kept = sorted(kept + chosen)
    x = image["features"]
    groups, last = joined(unit(x), [i for i in range(len(x)) if i not in kept], kept)
    return Kept(kept, min(gap, other, last), read=np.array([x[[i, *of_it]].mean(0) for i, of_it in groups.items()]))


def holov(image: dict, count: int, crops: int = 16, alpha: float = 0.09) -> Kept:
    attention, x = image["cls_attention"], unit(image["features"])
    stretches = np.array_split(np.arange(len(x)), min(crops, len(x)))
    worth = []
    for members in stretches:
        variance = []
        for i in members:
            alike = [x[i] @ x[j] for j in members if j != i]
            variance.append(np.var(alike) if alike else 0.0)
        scaled = np.array(variance) * attention[members].mean() / (np.mean(variance) + 1e-6)
        worth.append((attention[members] + alpha * scaled).mean())
    shares = [count * w / sum(worth) for w in worth]
    quotas = [math.floor(share) for share in shares]
    ranking, gap = best(np.array(shares), len(shares))
    gap = min([gap, *(shares[a] - shares[b] for a, b in pairwise(ranking))])
    gap = min([gap, *(abs(share - round(share)) for share in shares if len(shares) > 1)])
    for part in ranking[: count - sum(quotas)]:
        quotas[part] += 1
    quotas = [min(quota, len(members)) for quota, members in zip(quotas, stretches, strict=True)]
    while sum(quotas) < count:
        for part in ranking:
            if quotas[part] < len(stretches[part]) and sum(quotas) < count:
                quotas[part] += 1
    kept = []
    for quota, members in zip(quotas, stretches, strict=True):
        chosen, other = best(attention, quota, members.tolist())
        kept, gap = kept + chosen, min(gap, other)
    return Kept(kept, gap, notes={"quotas": quotas})


def by_remainder(total: int, dues: list, room: list[int], least: list[int]) -> list[int]:
    """Return whole parts of a total by the method of largest remainders, with bounds on each part.

    Every part begins with the whole number below its due, or the bound that this breaks. The units that are missing
    are listed in rounds, one for each part that has room for it, and in a round by falling remainder, then by part; the
    first of them are given. Units that are too many are taken back in the same way, by rising remainder, last part
    first.
    """
    starts = [min(max(math.floor(due), low), high) for due, low, high in zip(dues, least, room, strict=True)]
    missing = total - sum(starts)
    spans = zip(starts, least, room, strict=True)
    free = [high - start if missing > 0 else start - low for start, low, high in spans]
    sign = 1 if missing > 0 else -1
    units = [
        (turn, sign * (starts[part] - due), sign * part) for part, due in enumerate(dues) for turn in range(free[part])
    ]
    moved = [sign * part for _, _, part in sorted(units)[: abs(missing)]]
    return [start + sign * moved.count(part) for part, start in enumerate(starts)]


def in_proportion(total: int, sizes: list[int], room: list[int] | None = None) -> list[int]:
    """Return whole parts of a total that are proportional to sizes, by largest remainders, which are exact."""
    dues = [Fraction(total * size, max(sum(sizes), 1)) for size in sizes]
    return by_remainder(total, dues, sizes if room is None else room, [0] * len(sizes))


def principal_groups(features: np.ndarray, wanted: int) -> tuple[dict[int, list[int]], float]:
    """Return the tokens of each principal component (principal semantic components analysis).

    The matrix has a row a token: the logistic function of its features, centred in each token. Left singular vectors
    of it are the components; one without energy is none, and a token without features that differ is of the first.
    """
    matrix = 1 / (1 + np.exp(-features))
    matrix = matrix - matrix.mean(axis=1)[:, None]
    flat = np.abs(matrix).max(axis=1) < 1e-14
    matrix[flat] = 0
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    count = max(1, min(wanted, int((sizes > 1e-6 * sizes[0]).sum())))
    members: dict[int, list[int]] = {component: [] for component in range(count)}
    gap = math.inf
    for token, loadings in enumerate(np.abs(left[:, :count])):
        falling = sorted(range(count), key=lambda c: -loadings[c])
        if flat[token]:
            falling = [0]
        elif count > 1:
            gap = min(gap, loadings[falling[0]] - loadings[falling[1]])
        members[falling[0]].append(token)
    return members, gap


def prunesid(image: dict, count: int, per_group: int = 4, scale: float = 32.0) -> Kept:
    """Components, then suppression in each, then a part of the budget for each, from the formulas."""
    attention, x = image["cls_attention"], unit(image["encoder_features"])
    groups, gap = principal_groups(image["encoder_features"], max(1, count // per_group))
    pairs = [x[i] @ x[j] for i in range(len(x)) for j in range(i)]
    threshold = count / scale * float(np.mean(pairs)) if pairs else 0.0
    gap = min([gap, *(abs(pair - threshold) for pair in pairs)])
    heads: dict[int, list[int]] = {}
    tails: dict[int, list[int]] = {}
    for group, members in groups.items():
        waiting, heads[group], tails[group] = list(members), [], []
        while waiting:
            head = max(waiting, key=lambda i: (attention[i], -i))
            waiting.remove(head)
            heads[group].append(head)
            alike = [i for i in waiting if x[head] @ x[i] > threshold]
            waiting = [i for i in waiting if i not in alike]
            tails[group] += alike
        tails[group].sort(key=lambda i: (-attention[i], i))
    # Bounds of a part: one token, where there is one; the heads, at most five for every 64 tokens begun.
    low = {group: 1 if members else 0 for group, members in groups.items()}
    high = {group: min(len(heads[group]), 5 * -(-count // 64)) for group in groups}
    while sum(high.values()) < count:
        for group, members in groups.items():
            high[group] += high[group] < len(members)
    spare, listed, part = count - sum(low.values()), sum(map(len, heads.values())), {}
    for group in groups:
        before = sum(len(heads[other]) for other in groups if other < group)
        upper, lower = (round(spare * n / listed) for n in (before + len(heads[group]), before))
        part[group] = min(low[group] + upper - lower, high[group])
    for group in sorted(groups, key=lambda g: len(heads[g]), reverse=True):
        while part[group] < high[group] and sum(part.values()) < count:
            part[group] += 1
    return Kept([i for group in groups for i in (heads[group] + tails[group])[: part[group]]], gap)


def vidcom2(video: dict, count: int, temperature: float = 0.01, channels: float = 0.5) -> Kept:
    """Frame compression adjustment and adaptive token compression, one frame and token at a time."""
    x, number = video["features"], list(video["frames"])
    quiet = sorted(range(x.shape[1]), key=lambda c: (x[:, c].var(), c))[: max(1, int(channels * x.shape[1]))]
    v = unit(x[:, quiet])
    frames = {f: [i for i, other in enumerate(number) if other == f] for f in sorted(set(number))}

    def likeness(i: int, members: list[int]) -> float:
        """Return the sum over alpha = 2^-3 to 2^1 of exp(-|v - mean|^2 / (2 alpha))."""
        away = v[i] - sum(v[j] for j in members) / len(members)
        return sum(math.exp(-(away @ away) / 2**k / 2) for k in range(-3, 2))

    whole = list(range(len(v)))
    to_video = [likeness(i, whole) for i in whole]
    to_frame = [likeness(i, frames[number[i]]) for i in whole]
    unlike = [-sum(to_video[i] for i in members) / len(members) / temperature for members in frames.values()]
    shift = max(unlike)
    weights = [math.exp(u - shift) for u in unlike]
    shares = []
    for weight, members in zip(weights, frames.values(), strict=True):
        rate = count / len(v) * (1 + weight / sum(weights) - 1 / len(frames))
        shares.append(min(rate, 1) * len(members))
    sizes = [len(members) for members in frames.values()]
    parts = by_remainder(count, shares, sizes, [int(count >= len(frames))] * len(frames))
    kept, gap = [], math.inf
    for part, members in zip(parts, frames.values(), strict=True):
        # The best are those least like both means.
        chosen, other = best(-(np.array(to_video) + np.array(to_frame)), part, members)
        kept, gap = kept + chosen, min(gap, other)
    return Kept(kept, gap, notes={"quotas": parts, "shares": shares})


def evs(video: dict, count: int) -> Kept:
    x, where = (
        unit(video["features"]),
        [(f, *cell) for f, cell in zip(video["frames"], video["grid"].tolist(), strict=True)],
    )
    before = [where.index((f - 1, *cell)) if (f - 1, *cell) in where else None for f, *cell in where]
    scores = np.array([255.0 if j is None else 1 - x[i] @ x[j] for i, j in enumerate(before)])
    kept, gap = best(scores, count)
    return Kept(kept, gap if scores[kept[-1]] < 255 else math.inf, notes={"scores": scores})


KEPT = {"fastervlm": fastervlm, "vispruner": vispruner, "hiprune": hiprune, "trim": trim}
KEPT |= {
    "holov": holov,
    "prunesid": prunesid,
    "visionzip": visionzip,
    "prumergeplus": prumergeplus,
    "tome": tome,
    "vscan": vscan,
}
