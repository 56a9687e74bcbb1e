"""Methods that drop tokens inside the language model, and the decoder round them, slowly in float64 NumPy.

One prompt at a time, layer by layer, with full attention maps and a list of columns that is rebuilt at each drop. Only
the weights come from the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from tests.support.peers_reference import best, softmax, unit


@dataclass
class Look:
    """One image in its prompt, before a drop."""

    states: np.ndarray  # (L, D)
    key: np.ndarray  # (heads, L, d)
    attention: np.ndarray  # (heads, L, L)
    columns: list[int]
    text: list[int]
    raters: list[int]
    last: int
    final_norm: Callable[[np.ndarray], np.ndarray]


@dataclass
class Left:
    """What is left: tokens in pick order, merged states, and the smallest gaps that tokens and their order rest on."""

    tokens: list[int]
    merged: list[np.ndarray] = field(default_factory=list)
    gap: float = math.inf
    order_gap: float = math.inf


# ------------------------------------------------------------------------------------------------ methods


def last_attention(look: Look, count: int) -> Left:
    """FastV and PyramidDrop."""
    scores = look.attention[:, look.last, look.columns].mean(0)
    tokens, gap = best(scores, count)
    return Left(tokens, gap=gap, order_gap=_order_gap(scores, tokens))


def id_selection(look: Look, count: int, gamma: float | str = "auto", update: str = "multiply") -> Left:
    """ID-Selection among the image's tokens, from its formula; gamma "auto" is that of the image's mean distance."""
    scores = look.attention[:, look.last, look.columns].mean(0)
    units = look.states[look.columns] / np.linalg.norm(look.states[look.columns], axis=1, keepdims=True)
    distance = np.maximum(0, 1 - units @ units.T)
    n = len(scores)
    mean = distance[~np.eye(n, dtype=bool)].mean() if n > 1 else 1.0
    weights = np.exp(-(np.log(100) / mean**2 if gamma == "auto" else gamma) * distance**2)
    np.fill_diagonal(weights, 1.0)
    tokens: list[int] = []
    gap = math.inf
    while len(tokens) < count:
        open_scores = np.array([-math.inf if i in tokens else scores[i] for i in range(n)])
        first, second = np.sort(open_scores)[::-1][:2] if n - len(tokens) > 1 else (1.0, 0.0)
        gap = min(gap, (first - second) / first)
        tokens.append(int(open_scores.argmax()))
        pick = tokens[-1]
        less = scores[pick] * weights[pick] if update == "subtract" else scores * weights[pick]
        scores = scores - less
    return Left(tokens, gap=gap, order_gap=gap)


def raters(embeddings: np.ndarray, columns: list[int], text: list[int]) -> list[int]:
    spread = softmax(embeddings[columns] @ embeddings[text].T).mean(0)
    chosen = [word for word, share in zip(text, spread, strict=True) if share > spread.mean()]
    return chosen or text


def recycled(dropped: int, share: float = 0.3) -> tuple[int, int]:
    """Return how many of the dropped tokens are clustered, and into how many clusters."""
    if dropped == 0:
        return 0, 0
    pool = int(share * dropped) + 1
    return pool, int(pool / 10) + 1


def sparsevlm(look: Look, count: int) -> Left:
    scores = look.attention[:, look.raters][:, :, look.columns].mean((0, 1))
    n = len(look.columns)
    kept = max(k for k in range(n + 1) if k + recycled(n - k)[1] == count)
    pool, clusters = recycled(n - kept)
    ranking, gap = best(scores, kept + pool)
    merged, other = density_peaks(look.states[look.columns][sorted(ranking[kept:])], clusters)
    gap = min(gap, best(scores, kept)[1], other)
    return Left(ranking[:kept], merged, gap, _order_gap(scores, ranking[:kept]))


def density_peaks(x: np.ndarray, clusters: int) -> tuple[list[np.ndarray], float]:
    """Return the means of the clusters; equal distances make equal densities, so exact ties are no doubtful ones."""
    distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / math.sqrt(x.shape[1])
    density = [math.exp(-np.mean(np.sort(row)[:clusters] ** 2)) for row in distance]
    rank = sorted(range(len(x)), key=lambda i: (-density[i], i))
    gaps = np.empty(len(x))
    for place, i in enumerate(rank):
        gaps[i] = min((distance[i, j] for j in rank[:place]), default=distance.max())
    peaks = np.array(density) * gaps
    ranking, gap = best(peaks, clusters)
    gap = min([math.inf, *(abs(a - b) for a in peaks[ranking] for b in peaks if a != b)])
    members: dict[int, list[int]] = {centre: [centre] for centre in ranking}
    for i in range(len(x)):
        if i not in members:
            nearest = sorted(ranking, key=lambda centre: distance[i, centre])
            members[nearest[0]].append(i)
            if len(nearest) > 1:
                gap = min(gap, distance[i, nearest[1]] - distance[i, nearest[0]])
    return [x[group].mean(0) for group in members.values()], gap


def dart(look: Look, count: int, faithful: bool = False) -> Left:
    norms = np.abs(look.key).sum((0, 2))
    own, gap = best(norms[look.columns], min(4, count))
    words, other = best(norms[look.text], min(4, len(look.text)))
    order_gap = min(_order_gap(norms[look.columns], own), _order_gap(norms[look.text], words))
    pivots = [look.columns[i] for i in own] + [look.text[i] for i in words]
    if faithful:
        pivots = list(set(pivots))
    x = unit(look.final_norm(look.states))
    kept, pool = list(own), [i for i in range(len(look.columns)) if i not in own]
    # The order of pivots decides what each of them takes.
    gap = min(gap, other, order_gap)
    for turn, pivot in enumerate(pivots):
        share = (count - 4) // 8 if faithful else math.ceil((count - len(kept)) / (len(pivots) - turn))
        scores = -x[look.columns] @ x[pivot]
        least_alike, other = best(scores, share, pool)
        kept, gap = kept + least_alike, min(gap, other)
        order_gap = min(order_gap, _order_gap(scores, least_alike))
        pool = [i for i in pool if i not in least_alike]
    return Left(kept, gap=gap, order_gap=order_gap)


def _order_gap(scores: np.ndarray, ranking: list[int]) -> float:
    return min((scores[a] - scores[b] for a, b in pairwise(ranking)), default=math.inf)


# ------------------------------------------------------------------------------------------------ decoder


@dataclass
class Read:
    """A prompt that was read: logits of its columns that are left, cache and offset of each layer, and the drops."""

    logits: np.ndarray
    cache: list[tuple[np.ndarray, np.ndarray]]
    shift: list[int]
    next: int
    kept: list[list[list[int]]]
    gap: float


class Decoder:
    """The language model of a tiny LLaVA with a Llama decoder."""

    def __init__(self, model) -> None:
        llama = model.model.language_model
        self.config = llama.config
        self.weights = {name: value.detach().double().numpy() for name, value in llama.named_parameters()}
        self.head = model.lm_head.weight.detach().double().numpy()
        self.depth = self.config.num_hidden_layers
        self.heads, self.key_heads = self.config.num_attention_heads, self.config.num_key_value_heads

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + self.config.rms_norm_eps)
        return x / scale * self.weights[f"{name}.weight"]

    def final_norm(self, x: np.ndarray) -> np.ndarray:
        return self.norm(x, "norm")

    def project(self, layer: int, x: np.ndarray, positions: list[int]) -> SimpleNamespace:
        """Return queries, keys and values, (heads, L, d)."""
        x = self.norm(x, f"layers.{layer}.input_layernorm")

        def heads(name: str, count: int) -> np.ndarray:
            return (
                (x @ self.weights[f"layers.{layer}.self_attn.{name}.weight"].T)
                .reshape(len(x), count, -1)
                .swapaxes(0, 1)
            )

        def turned(y: np.ndarray) -> np.ndarray:
            half = y.shape[-1] // 2
            frequency = self.config.rope_parameters["rope_theta"] ** (-np.arange(half) / half)
            angle = np.array(positions)[:, None] * frequency
            a, b = y[..., :half], y[..., half:]
            return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

        return SimpleNamespace(
            query=turned(heads("q_proj", self.heads)),
            key=turned(heads("k_proj", self.key_heads)),
            value=heads("v_proj", self.key_heads),
        )

    def attend(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Return attention (heads, T, L) of the last T of L tokens."""
        key = np.repeat(key, self.heads // self.key_heads, 0)
        logits = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        ahead = np.arange(key.shape[1]) > np.arange(key.shape[1] - query.shape[1], key.shape[1])[:, None]
        return softmax(np.where(ahead, -np.inf, logits))

    def finish(self, layer: int, x: np.ndarray, attention: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return what a layer gives for tokens x (T, D)."""
        name = f"layers.{layer}"
        out = attention @ np.repeat(value, self.heads // self.key_heads, 0)
        x = x + out.swapaxes(0, 1).reshape(len(x), -1) @ self.weights[f"{name}.self_attn.o_proj.weight"].T
        y = self.norm(x, f"{name}.post_attention_layernorm")
        gate, up = (y @ self.weights[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{name}.mlp.down_proj.weight"].T

    def read(
        self,
        embeddings: np.ndarray,
        images: list[list[int]],
        places: tuple[int, ...] = (),
        counts: list[list[int]] | None = None,
        rule: Callable[[Look, int], Left] = last_attention,
        compact: bool = True,
        after: bool = False,
        begin: list[int] | None = None,
    ) -> Read:
        """Read a prompt, and drop tokens of its images before `places`.

        `counts` tells for each image how many tokens each drop leaves. `after` reads the layer behind the drop. `begin`
        are positions to begin with; `compact` closes the gaps that drops make.
        """
        x, positions = embeddings, list(begin or range(len(embeddings)))
        start = positions
        owner = {column: image for image, columns in enumerate(images) for column in columns}
        # A column: its image or None for text, its token or None for a merged one.
        everything = range(len(embeddings))
        line = [(owner.get(c), images[owner[c]].index(c) if c in owner else None) for c in everything]
        texts = [[c for c in everything if c > max(columns) and c not in owner] for columns in images]
        words = [raters(x, columns, text) if text else [] for columns, text in zip(images, texts, strict=True)]
        cache, shift, gap = [], [], math.inf
        kept: list[list[list[int]]] = [[] for _ in images]
        projected, attention = None, None
        for layer in range(self.depth):
            if layer in places:
                drop = places.index(layer)
                if after:
                    projected = self.project(layer, x, positions)
                    attention = self.attend(projected.query, projected.key)
                new_line, new_x, new_positions, moved = [], [], [], {}
                left = {}
                for image in range(len(images)):
                    columns = [c for c, (whose, _) in enumerate(line) if whose == image]
                    if counts[image][drop] >= len(columns):
                        left[image] = (columns, [])
                        continue
                    look = Look(
                        x, projected.key, attention, columns, texts[image], words[image], len(line) - 1, self.final_norm
                    )
                    choice = rule(look, counts[image][drop])
                    left[image] = ([columns[i] for i in sorted(choice.tokens)], choice.merged)
                    gap = min(gap, choice.gap)
                for c, (image, _) in enumerate(line):
                    if image is not None and c not in left[image][0]:
                        continue
                    moved[c] = len(new_line)
                    new_line.append(line[c])
                    new_x.append(x[c])
                    new_positions.append(positions[c] - (c - len(new_positions)) * compact)
                    if image is not None and c == left[image][0][-1]:
                        for state in left[image][1]:
                            new_line.append((image, None))
                            new_x.append(state)
                            new_positions.append(new_positions[-1] + 1)
                line, x, positions = new_line, np.array(new_x), new_positions
                texts, words = ([[moved[c] for c in row] for row in rows] for rows in (texts, words))
                for image in range(len(images)):
                    kept[image].append([token for whose, token in line if whose == image and token is not None])
            projected = self.project(layer, x, positions)
            attention = self.attend(projected.query, projected.key)
            cache.append((projected.key, projected.value))
            shift.append(start[-1] - positions[-1])
            x = self.finish(layer, x, attention, projected.value)
        logits = self.final_norm(x) @ self.head.T
        return Read(logits, cache, shift, start[-1] + 1, kept, gap)

    def step(self, read: Read, embedding: np.ndarray) -> np.ndarray:
        """Read one more token; return its logits."""
        x = embedding[None]
        for layer in range(self.depth):
            new = self.project(layer, x, [read.next - read.shift[layer]])
            key, value = (
                np.concatenate([old, now], 1) for old, now in zip(read.cache[layer], (new.key, new.value), strict=True)
            )
            read.cache[layer] = key, value
            x = self.finish(layer, x, self.attend(new.query, key), value)
        read.next += 1
        return (self.final_norm(x) @ self.head.T)[0]
