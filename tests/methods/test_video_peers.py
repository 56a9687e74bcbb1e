"""The peers of videos against slow float64 references, at the edges of their budgets, in padded batches."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from idsel_core.methods import METHODS, Method, get_method
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Unavailable, VisualTokens
from tests.support import videos_reference as reference
from tests.support.peers_reference import Kept

NAMES = ("dycoke", "fastvid", "holitom")
WIDTH = 24
TIE = 1e-6


def clip(seed: int, scenes: tuple[int, ...], rows: int, columns: int, newline: bool = False) -> dict[str, Tensor]:
    """Return a video of scenes of so many frames; in a scene most places stand still, and some move."""
    draw = np.random.default_rng(seed)
    cells, frames = rows * columns, []
    for length in scenes:
        first = draw.standard_normal((cells, WIDTH)) + 1.5 * draw.standard_normal(WIDTH)
        speed = np.where(draw.random(cells) < 0.35, 1.2, 0.15)[:, None]
        steps = speed * draw.standard_normal((length, cells, WIDTH))
        steps[0] = 0
        frames.append(first + steps.cumsum(0))
    features, place = np.concatenate(frames).reshape(-1, WIDTH), np.arange(cells)
    shown = {
        "features": features,
        "grid": np.tile(np.stack([place // columns, place % columns], 1), (sum(scenes), 1)),
        "frames": np.repeat(np.arange(sum(scenes)), cells),
        "received_attention": np.exp(draw.standard_normal(len(features))) / 50,
    }
    if newline:
        ends = {"features": draw.standard_normal((1, WIDTH)), "grid": [[-1, -1]], "frames": [sum(scenes) - 1]}
        ends["received_attention"] = [0.0]
        shown = {name: np.concatenate([values, ends[name]]) for name, values in shown.items()}
    return {name: torch.from_numpy(np.asarray(values)) for name, values in shown.items()}


CLIPS = [
    clip(0, (3, 4, 2), 4, 5),
    clip(1, (5, 1, 3), 3, 3, newline=True),
    clip(2, (6, 6), 2, 4),
    clip(3, (2,), 5, 5),
    clip(4, (1,), 4, 4),
]


def batch(*clips: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> VisualTokens:
    """Return videos as one batch, padded with what must not matter."""
    width = max(len(one["features"]) for one in clips)

    def padded(name: str) -> Tensor:
        floating = clips[0][name].is_floating_point()
        rows = [one[name].to(dtype) if floating else one[name] for one in clips]
        return torch.nn.utils.rnn.pad_sequence(rows, True, math.nan if floating else -1)

    mask = torch.arange(width) < torch.tensor([len(one["features"]) for one in clips])[:, None]
    sources = {name: lambda name=name: padded(name) for name in ("frames", "received_attention")}
    return VisualTokens(padded("features"), mask, padded("grid"), sources)


def numpy_of(one: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return a video as the reference reads it: float64, of the numbers that the method was given."""
    return {name: (v.float().double() if v.is_floating_point() else v).numpy() for name, v in one.items()}


def read_of(picks: Selection, row: int, tokens: VisualTokens) -> Tensor:
    """Return what the language model reads of one video."""
    if picks.features is None:
        return tokens.features[row, picks.rows()[row]]
    return picks.features[row, : int(picks.counts[row])]


def check(picks: Selection, row: int, tokens: VisualTokens, wanted: Kept) -> bool:
    """Check what is kept of one video and read of it, unless a decision was a near tie; return whether it was not."""
    if wanted.gap <= TIE:
        return False
    assert picks.rows()[row].tolist() == sorted(wanted.tokens)
    if wanted.read is not None:
        read = read_of(picks, row, tokens).double()
        torch.testing.assert_close(read, torch.from_numpy(wanted.read), atol=1e-5, rtol=0)
    return True


def build(name: str, budget: float, **knobs) -> Method:
    return get_method(name, budget=budget, **knobs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 2, 7, 13, 30, 45, 60, 81, 82, 95, 96, 150, 179, 180])
def test_a_method_keeps_and_reads_the_tokens_of_the_reference(name, budget):
    tokens, compared = batch(*CLIPS), 0
    picks = build(name, budget).select(tokens)
    for row, one in enumerate(map(numpy_of, CLIPS)):
        count = min(budget, len(one["features"]))
        wanted = getattr(reference, name)(one, count)
        assert len(set(wanted.tokens)) == len(wanted.tokens) == count == int(picks.counts[row])
        compared += check(picks, row, tokens, wanted)
    assert compared >= 4


KNOBS = [
    ("fastvid", {"segments": 2}, {"c": 2}),
    ("fastvid", {"segments": 1, "threshold": 0.0}, {"c": 1, "tau": 0.0}),
    ("fastvid", {"threshold": 1.0}, {"tau": 1.0}),
    ("fastvid", {"segments": 3, "context": 0.8}, {"c": 3, "d": 0.8}),
    ("fastvid", {"segments": 3, "every": 2}, {"c": 3, "p": 2}),
    ("fastvid", {"segments": 3, "every": 1}, {"c": 3, "p": 1}),
    ("fastvid", {"segments": 3, "own": 0.1}, {"c": 3, "alpha": 0.1}),
    ("holitom", {"threshold": 0.95}, {"tau": 0.95}),
    ("holitom", {"own": 0.2}, {"beta": 0.2}),
    ("holitom", {"context": 0.5}, {"d": 0.5}),
    ("holitom", {"neighbours": 1}, {"k": 1}),
    ("holitom", {"neighbours": 3}, {"k": 3}),
]


@pytest.mark.parametrize(("name", "knobs", "in_paper"), KNOBS, ids=repr)
def test_a_knob_changes_what_the_reference_says(name, knobs, in_paper):
    tokens, compared, changed = batch(*CLIPS), 0, False
    for budget in (20, 50):
        picks, plain = build(name, budget, **knobs).select(tokens), build(name, budget).select(tokens)
        for row, one in enumerate(map(numpy_of, CLIPS)):
            count = min(budget, len(one["features"]))
            compared += check(picks, row, tokens, getattr(reference, name)(one, count, **in_paper))
            read = [
                torch.nan_to_num(tokens.features[row]) if s.features is None else s.features[row]
                for s in (picks, plain)
            ]
            changed |= not torch.equal(picks.rows()[row], plain.rows()[row]) or not torch.equal(*read)
    assert compared >= 7 and changed


@pytest.mark.parametrize("share", [0.3, 0.15, 0.55])
def test_dycoke_as_published(share):
    clips = [CLIPS[0], CLIPS[2], clip(5, (5,), 3, 4), clip(6, (4, 3), 4, 4)]
    picks = build("dycoke", share, faithful=True).select(batch(*clips))
    for row, one in enumerate(map(numpy_of, clips)):
        wanted = reference.dycoke_program(one, 1 - share)
        assert wanted.gap > TIE
        assert picks.rows()[row].tolist() == sorted(wanted.tokens)


def test_dycoke_as_published_judges_a_pair_by_the_pair_before_it():
    moving = clip(0, (6,), 2, 3)
    moving["features"] = moving["features"][:6].repeat(6, 1)
    moving["features"][6] *= -1  # of the second frame: place 0
    moving["features"][19] *= -1  # of the fourth frame: place 1
    published, fixed = (
        build("dycoke", b, faithful=f).select(batch(moving)).rows()[0] for b, f in ((1, True), (16, False))
    )
    # One place of the second, third, fourth and sixth frames; the last pair stands still, so place 0 comes first.
    assert sorted({*range(0, 6), 6, 12, 18, *range(24, 30), 31}) == published.tolist()
    assert {6, 19} <= set(fixed.tolist())


@pytest.mark.parametrize(
    ("name", "share"),
    [("fastvid", 0.2), ("fastvid", 0.3), ("fastvid", 0.45), ("holitom", 0.1), ("holitom", 0.3), ("holitom", 0.45)],
)
def test_counts_as_published(name, share):
    clips = [CLIPS[0], CLIPS[1], CLIPS[2]]
    tokens = batch(*clips)
    picks = build(name, share, faithful=True).select(tokens)
    for row, one in enumerate(map(numpy_of, clips)):
        count = max(1, math.floor(share * len(one["features"]) + 0.5))
        wanted = getattr(reference, name)(one, count, share=share)
        assert check(picks, row, tokens, wanted)


@pytest.mark.parametrize("name", ["fastvid", "holitom"])
@pytest.mark.parametrize("budget", [24, 27, 31, 40])
def test_a_number_of_tokens_is_a_share_of_the_video_as_published(name, budget):
    clips = [CLIPS[0], CLIPS[1], CLIPS[2]]
    tokens = batch(*clips)
    picks = build(name, budget, faithful=True).select(tokens)
    for row, one in enumerate(map(numpy_of, clips)):
        off = int((one["grid"][:, 0] < 0).sum())
        share = Fraction(budget - off, len(one["grid"]) - off)
        assert check(picks, row, tokens, getattr(reference, name)(one, budget, share=share))


@pytest.mark.parametrize(("name", "places", "due"), [("fastvid", 23, 13), ("holitom", 25, 7)])
def test_a_number_of_tokens_is_an_exact_share_as_published(name, places, due):
    """In floating point, 23 * (104 / 184) is below 13, and 25 * (56 / 200) above 7."""
    moving = clip(3, (1,) * 8, 1, places)
    assert build(name, 8 * due, faithful=True).select(batch(moving)).counts.tolist() == [8 * due]


@pytest.mark.parametrize("budget", [0.02, 1, 5])
def test_a_budget_of_which_the_authors_code_keeps_nothing_is_refused(budget):
    with pytest.raises(ValueError, match="FastVID's code keeps no token of 180 in 9 frames at this budget"):
        build("fastvid", budget, faithful=True).select(batch(clip(0, (9,), 4, 5)))


@pytest.mark.parametrize(
    ("name", "shown", "message"),
    [
        ("dycoke", clip(0, (4,), 2, 2), r"DyCoke's code needs five frames of one size; got frames of \[4, 4, 4, 4\]"),
        ("fastvid", clip(0, (7,), 2, 2), "FastVID's code needs 8 frames, and room for context tokens in each"),
        ("fastvid", clip(0, (9,), 4, 5), "FastVID's code needs 8 frames, and room for context tokens in each"),
    ],
)
def test_what_the_authors_code_fails_on_is_refused(name, shown, message):
    knobs = {"segments": 8, "threshold": 0.0} if name == "fastvid" else {}
    with pytest.raises(ValueError, match=message):
        build(name, 0.9, faithful=True, **knobs).select(batch(shown))


@pytest.mark.parametrize("name", NAMES)
def test_a_newline_is_kept_where_the_budget_is_above_one(name):
    shown = CLIPS[1]
    last = len(shown["features"]) - 1
    for budget, kept in ((1, False), (2, True), (40, True)):
        assert (last in build(name, budget).select(batch(shown)).rows()[0].tolist()) == kept
    off = {**shown, "grid": torch.full_like(shown["grid"], -1)}
    assert build(name, 5).select(batch(off)).rows()[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", NAMES)
def test_no_feature_is_zero_or_longer_than_its_members_and_duplicates_do_not_matter(name):
    still = clip(0, (8,), 4, 4)
    still["features"] = still["features"][:16].repeat(8, 1)
    still["features"][[3, 40]] = 0
    longest = still["features"].norm(dim=1).max()
    for budget in (1, 5, 16, 17, 60, 127):
        picks = build(name, budget).select(batch(still))
        assert picks.counts.tolist() == [budget]
        if picks.features is not None:
            assert bool(picks.features.isfinite().all()) and picks.features.norm(dim=2).max() <= longest + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_are_not_merged_are_read_bit_for_bit(name):
    tokens = batch(*CLIPS, dtype=torch.bfloat16)
    picks = build(name, 0.4).select(tokens)
    if picks.features is None:
        return
    assert picks.features.dtype == torch.bfloat16
    plain = tokens.features.gather(1, picks.indices.clamp_min(0)[..., None].expand(-1, -1, WIDTH))
    same = (picks.features == plain).all(2) & (picks.indices >= 0)
    assert int(same.sum()) > 0.25 * int(picks.counts.sum())


def test_holitom_spends_nothing_on_what_stands_still():
    still = clip(0, (6,), 4, 4)
    still["features"] = still["features"][:16].repeat(6, 1)
    still["features"][16 * 3 + 5] *= -1  # one place of the fourth frame
    picks = build("holitom", 16 + 5).select(batch(still))
    assert {16 * frame + 5 for frame in range(6)} <= set(picks.rows()[0].tolist())
    assert {*range(16)} <= set(picks.rows()[0].tolist())


def test_fastvid_merges_a_segment_into_its_anchor_frames():
    shown = clip(0, (5,), 4, 5)
    picks = build("fastvid", 20, segments=1, threshold=0.0).select(batch(shown))
    # 4 tokens a frame, 3 of them attended; 5 context tokens in the first and the last frame.
    assert torch.bincount(picks.rows()[0] // 20).tolist() == [6, 3, 3, 3, 5]


@pytest.mark.parametrize("name", ["fastvid", "holitom"])
def test_attention_of_cls_is_read_if_asked(name):
    tokens = batch(*CLIPS)
    swapped = dict(tokens.sources)
    swapped["cls_attention"] = swapped.pop("received_attention")
    other = VisualTokens(tokens.features, tokens.mask, tokens.grid, swapped)
    method = build(name, 30, attention="cls")
    assert torch.equal(method.select(other).order, build(name, 30).select(tokens).order)
    with pytest.raises(Unavailable, match="received_attention is not available"):
        build(name, 30).select(other)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_refused(name):
    tokens = batch(*CLIPS)
    frames = tokens.sources["frames"]().index_fill(0, torch.tensor([1]), -1)
    mixed = VisualTokens(tokens.features, tokens.mask, tokens.grid, {**tokens.sources, "frames": lambda: frames})
    label = METHODS[name].label
    with pytest.raises(Unavailable, match=f"input 1 is an image, and {label} compares the frames of a video"):
        build(name, 5).select(mixed)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("dycoke", {"faithful": 1}, "faithful must be True or False, not 1"),
        ("fastvid", {"segments": 0}, "segments must be an int, 1 or more, not 0"),
        ("fastvid", {"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5"),
        ("fastvid", {"context": -0.1}, "context must be a number from 0 to 1, not -0.1"),
        ("fastvid", {"every": 2.0}, "every must be an int, 1 or more, not 2.0"),
        ("fastvid", {"own": math.nan}, "own must be a number from 0 to 1, not nan"),
        ("fastvid", {"attention": "sum"}, "attention must be one of cls, received, not 'sum'"),
        ("fastvid", {"faithful": None}, "faithful must be True or False, not None"),
        ("holitom", {"threshold": "0.8"}, "threshold must be a number from 0 to 1, not '0.8'"),
        ("holitom", {"own": 2}, "own must be a number from 0 to 1, not 2"),
        ("holitom", {"context": True}, "context must be a number from 0 to 1, not True"),
        ("holitom", {"neighbours": 0}, "neighbours must be an int, 1 or more, not 0"),
        ("holitom", {"faithful": "no"}, "faithful must be True or False, not 'no'"),
    ],
)
def test_wrong_knobs_are_refused(name, knobs, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build(name, 4, **knobs)
