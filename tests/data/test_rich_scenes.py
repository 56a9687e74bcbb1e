"""Rich scenes: answers that are true of the image alone, balanced, and nothing of the test split in training."""

import csv
import io
import re
from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from data.scenes.ask import CORNERS
from data.scenes.ask_rich import RICH_QUESTION_TYPES, WORDINGS, ask_rich
from data.scenes.draw import COLORS, DIGITS, LETTERS, NOUNS
from data.scenes.make import IMAGES, RICH
from data.scenes.nouns import HERE, KINDS, MAIN_KINDS, PICTURED, allowed, main, picture_of
from data.scenes.rich import RICH_SPLITS, draw_rich_scene, fit_picture, plan_rich_looks, rich_rng
from idsel_core.study.dataset import read_split
from idsel_core.study.paths import DATA

STORED = tuple(RICH)
each_stored = pytest.mark.parametrize("name", STORED)
drawn = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def table():
    """The table of nouns as it is written, read without the code under test."""
    with (HERE / "nouns.csv").open(newline="") as file:
        return {
            row["noun"]: {k: row[k].split(";") for k in ("kinds", "doubts", "test_only")}
            for row in csv.DictReader(file)
        }


TABLE = table()
KEPT = {noun for noun, row in TABLE.items() if row["test_only"] == ["yes"]}


def called(noun):
    """What an object is called without doubt."""
    return {noun, *TABLE[noun]["kinds"]} - {""} if noun in TABLE else {noun}


def might_be_called(noun):
    return set(TABLE[noun]["doubts"]) - {""} if noun in TABLE else set()


@cache
def questions(name):
    return pd.read_parquet(DATA / f"{name}-questions.parquet")


@cache
def images(name):
    return pd.read_parquet(DATA / f"{name}-images.parquet").set_index("image_id")


@cache
def scene(split, k, high=6, side=336):
    return draw_rich_scene(rich_rng(split, 10_000_000 + k), split, 1 if high == 3 else 2, high, side)


def holds(text, noun):
    return re.search(rf"\b({noun}|{PICTURED[noun].plural})\b", text) is not None


def test_the_table_names_what_a_person_can_name_once():
    assert 120 <= len(TABLE) <= 200
    names = {*TABLE, *KINDS, *NOUNS}
    assert (
        len({row.plural for row in PICTURED.values()}) == len({row.picture for row in PICTURED.values()}) == len(TABLE)
    )
    assert not set(TABLE) & {*KINDS, *NOUNS}
    for noun, row in TABLE.items():
        assert re.fullmatch("[a-z]+( [a-z]+)?", noun)
        assert set(row["kinds"]) <= {*KINDS, ""} and set(row["doubts"]) <= {*names, ""}
        assert len(set(row["kinds"]) & set(MAIN_KINDS)) <= 1
        assert not called(noun) & might_be_called(noun)


def test_a_fifth_of_the_nouns_of_each_kind_is_kept_for_the_test_split():
    assert 0.15 <= len(KEPT) / len(TABLE) <= 0.25
    for kind in KINDS:
        of_kind = [noun for noun in TABLE if kind in called(noun)]
        kept = len(KEPT.intersection(of_kind))
        assert kept >= 1 and len(of_kind) - kept >= 2
        if kind in MAIN_KINDS:
            assert 0.15 <= kept / len(of_kind) <= 1 / 3, kind
    assert set(allowed("test")) == set(TABLE)
    assert set(allowed("train")) == set(allowed("validation")) == set(TABLE) - KEPT


def test_each_noun_has_a_picture_of_its_own():
    stored = pd.read_parquet(HERE / "nouns.parquet")
    assert list(stored["noun"]) == list(TABLE)
    assert stored["picture"].map(bytes).is_unique
    assert all(picture_of(noun).size == (256, 256) for noun in TABLE)


def test_another_package_is_refused(tmp_path, monkeypatch, capsys):
    package = tmp_path / "other.tgz"
    package.write_bytes(b"other")
    monkeypatch.setattr("sys.argv", ["nouns", "--package", str(package), "--out", str(tmp_path / "nouns.parquet")])
    assert main() == 1
    assert "expected c1bb7eee" in capsys.readouterr().err and not (tmp_path / "nouns.parquet").exists()


def test_every_wording_is_one_of_four_or_more_of_which_the_last_is_kept():
    assert {question_type for question_type, _ in WORDINGS} == set(RICH_QUESTION_TYPES)
    for wordings in WORDINGS.values():
        assert len(set(wordings)) == len(wordings) >= 4
        parts = [set(re.findall(r"{(\w+)}", wording)) - {"one", "noun", "color"} for wording in wordings]
        assert all(found == parts[0] for found in parts)


@each_stored
def test_stored_splits_hold_all_types_and_the_best_constant_answer_is_at_chance(name):
    rows = questions(name)
    assert len(images(name)) == IMAGES[name] and len(rows) == 3 * IMAGES[name]
    assert rows["question_id"].is_unique and set(rows["question_type"]) == set(RICH_QUESTION_TYPES)
    counts = rows["question_type"].value_counts()
    assert counts.drop("reading").max() - counts.drop("reading").min() <= 2
    assert counts["reading"] >= counts.max() / 2
    assert all(answer in choices for answer, choices in zip(rows["answer"], rows["choices"], strict=True))
    for of, group in rows.groupby(["question_type", "template"]):
        chance = (1 / group["choices"].map(len)).mean()
        constant = group["answer"].value_counts(normalize=True).iloc[0]
        assert constant <= chance + max(0.03, 2 / len(group)), of


def test_new_nouns_and_new_wordings_are_balanced_and_marked():
    rows = questions("rich").set_index("question_id")
    objects = images("rich")["objects"]
    last = {of: re.escape(wordings[-1]) for of, wordings in WORDINGS.items()}
    for row in rows.itertuples():
        nouns = [objects[row.image_id][i]["noun"] for i in row.about]
        answers = {row.answer} if row.template in ("which", "place", "beside") else set()
        text = "" if row.question_type == "choice" else row.question
        new = any(noun in KEPT for noun in nouns) or any(noun in answers or holds(text, noun) for noun in KEPT)
        assert row.new_noun == new, row.question
        pattern = re.sub(r"\\{\w+\\}", ".+", last[row.question_type, row.template])
        assert row.new_wording == (re.match(pattern, row.question) is not None), row.question
    cells = rows.groupby(["new_noun", "new_wording"]).size()
    assert len(cells) == 4 and cells.min() >= 100
    named = rows[rows["new_noun"]]
    assert set(named["question_type"]) == set(RICH_QUESTION_TYPES) - {"reading"}
    # A kind that is there may be there as a new noun alone; one that is not cannot be.
    for template in ("noun", "relation"):
        sides = named[(named["template"] == template) & named["answer"].isin(["yes", "no"])]["answer"]
        assert sides.value_counts(normalize=True).max() <= 0.6


def test_validation_knows_nothing_of_what_is_kept():
    rows = questions("rich-validation")
    assert not rows["new_noun"].any() and not rows["new_wording"].any()
    nouns = {thing["noun"] for objects in images("rich-validation")["objects"] for thing in objects}
    assert not nouns & KEPT
    for texts in (rows["question"], rows["answer"], rows["choices"].map("; ".join)):
        text = " ; ".join(texts)
        assert not [noun for noun in KEPT if holds(text, noun)]


@each_stored
def test_images_are_what_the_generator_draws(name):
    again = draw_rich_scene(rich_rng(RICH[name], 3), RICH[name])
    row = images(name).loc[f"{name}-0003"]
    assert [dict(thing) for thing in row["objects"]] == [thing.as_dict() for thing in again.things]
    stored = np.asarray(Image.open(io.BytesIO(row["image"])), float)
    assert np.abs(stored - np.asarray(again.image, float)).mean() < 8


def test_the_study_reads_rich_scenes():
    split = read_split("rich", limit=14)
    assert len(split.questions) == 14 and split.has_boxes
    assert split.picture(split.questions["image_id"].iloc[0]).size == (336, 336)


@drawn
@given(st.integers(0, 10**6), st.sampled_from(RICH_SPLITS), st.sampled_from([(6, 336), (3, 196)]))
def test_objects_lie_inside_apart_and_are_allowed(k, split, crowd):
    high, side = crowd
    one = scene(split, k, high, side)
    assert 1 <= len(one.things) <= high and one.image.size == (side, side)
    for i, a in enumerate(one.things):
        assert 0 <= a.left < a.right <= side and 0 <= a.top < a.bottom <= side
        assert max(a.right - a.left, a.bottom - a.top) >= 60
        assert (a.color == "") == (a.noun in TABLE)
        assert a.noun in {*allowed(split), *NOUNS}
        for b in one.things[:i]:
            assert a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top


@drawn
@given(st.integers(0, 10**6), st.sampled_from(RICH_SPLITS))
def test_answers_are_true_without_doubt(k, split):
    one = scene(split, k)
    nouns = [thing.noun for thing in one.things]
    doubts = set().union(*map(might_be_called, nouns))
    for question in ask_rich(np.random.default_rng(k), one, 30, split=split):
        asked = [one.things[i] for i in question.about]
        assert question.answer in question.choices
        of = (question.question_type, question.template)
        match of:
            case "existence", "noun" | "kind":
                assert question.subject not in doubts
                assert (question.answer == "yes") == any(question.subject in called(noun) for noun in nouns)
            case "existence", "phrase":
                assert (question.answer == "yes") == (question.subject in [thing.phrase for thing in one.things])
                assert question.subject.split()[1] not in doubts
            case "counting", _:
                assert question.subject not in doubts
                assert int(question.answer) == sum(question.subject in called(noun) for noun in nouns)
            case "attribute", "color" | "size":
                assert question.answer == (asked[0].color if question.template == "color" else asked[0].size)
            case "attribute", "which":
                (kind,) = [kind for kind in KINDS if re.search(rf"\b{kind}\b", question.text)]
                assert [noun for noun in nouns if kind in called(noun)] == [question.answer] and kind not in doubts
            case "attribute", "kind" | "place":
                corner = next(corner for corner in CORNERS if corner in question.text)
                assert [thing for thing in one.things if _corner(thing, one.side) == corner] == asked
                assert question.answer in called(asked[0].noun)
                others = set(question.choices) - {question.answer} if question.template == "kind" else set()
                assert not others & (called(asked[0].noun) | might_be_called(asked[0].noun))
            case "attribute", "beside":
                seen, other = asked
                assert question.answer == seen.noun
                assert question.text.count(other.phrase) == 1
                beyond = [thing for thing in one.things if _beyond(thing, other, question.text)]
                assert beyond == [seen]
            case "relation", _:
                assert (question.answer == "yes") == _beyond(asked[0], asked[1], question.text)
                assert question.text.index(asked[0].phrase) < question.text.rindex(asked[1].phrase)
            case "position", _:
                assert question.answer == _corner(asked[0], one.side)
            case "reading", _:
                assert question.answer == asked[0].text and asked[0].text in (*LETTERS, *DIGITS)
            case "choice", "which":
                options = dict(re.findall(r"(\([A-D]\)) ([a-z ]+?)(?= \(|$)", question.text))
                assert [letter for letter, noun in options.items() if noun in nouns] == [question.answer]
                assert not doubts & set(options.values())
                assert sum(noun in KEPT for noun in options.values()) == (2 if split == "test" else 0)
            case "choice", "color":
                options = dict(re.findall(r"(\([A-D]\)) (\w+)", question.text))
                assert options[question.answer] == asked[0].color and set(options.values()) <= set(COLORS)
            case _:
                raise AssertionError(of)
        for thing in asked:
            named = question.question_type in ("position", "relation") or question.template == "size"
            if named:
                assert [t.phrase for t in one.things].count(thing.phrase) == 1 and thing.noun not in doubts


def _corner(thing, side):
    x, y = thing.center
    return f"{'bottom' if y > side / 2 else 'top'}-{'right' if x > side / 2 else 'left'}"


def _beyond(thing, other, text):
    (x, y), (u, v) = thing.center, other.center
    true = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}
    return next(holds for word, holds in true.items() if word in text)


@drawn
@given(st.integers(0, 10**6), st.sampled_from(("train", "validation")))
def test_no_other_split_draws_or_names_what_is_kept_for_the_test_split(k, split):
    one = scene(split, k)
    for question in ask_rich(np.random.default_rng(k), one, 20, split=split):
        text = " ; ".join((question.text, *question.choices))
        assert not [noun for noun in KEPT if holds(text, noun)]
        assert not question.new_noun and not question.new_wording
        last = WORDINGS[question.question_type, question.template][-1]
        assert not re.match(re.sub(r"\\{\w+\\}", ".+", re.escape(last)), question.text)


@cache
def asked(split, count):
    """Questions about many scenes that are planned and placed but not painted."""
    rng = np.random.default_rng(0)
    return [question for k in range(count) for question in ask_rich(rng, scene(split, k), 21, split=split)]


def reader(seen):
    reader = make_pipeline(CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)), LogisticRegression(C=0.1))
    return reader.fit([q.text for q in seen], [q.answer for q in seen])


def test_the_text_alone_does_not_tell_the_stored_answers():
    """A linear reader of the questions, trained on as many others, stays at chance."""
    for question_type, rows in questions("rich").groupby("question_type"):
        seen = [q for q in asked("test", 150) if q.question_type == question_type]
        right = (reader(seen).predict(rows["question"]) == rows["answer"]).mean()
        chance = rows["choices"].map(lambda choices: 1 / len(choices)).mean()
        assert right <= chance + 4 * np.sqrt(chance * (1 - chance) / len(rows)), question_type


def test_names_do_not_tell_existence_or_choice_in_training():
    """There the answers are drawn so that each name is as often right as its share, before anything is chosen."""
    for of in (("existence", "noun"), ("existence", "kind"), ("choice", "which")):
        every = [q for q in asked("train", 150) if (q.question_type, q.template) == of]
        seen, rest = every[: len(every) // 2], every[len(every) // 2 :]
        right = np.mean(reader(seen).predict([q.text for q in rest]) == [q.answer for q in rest])
        chance = np.mean([1 / len(q.choices) for q in rest])
        assert right <= chance + 4 * np.sqrt(chance * (1 - chance) / len(rest)), of


def test_one_noun_or_kind_occurs_one_to_four_times_each_as_often():
    plans = [plan_rich_looks(np.random.default_rng(k), "train", 2, 6) for k in range(2000)]
    most = Counter(max(Counter(name for noun, _ in plan for name in called(noun)).values()) for plan in plans)
    assert set(most) <= set(range(1, 7)) and min(most[n] for n in (1, 2, 3, 4)) >= 200


def test_a_picture_fills_the_box_that_is_asked_for():
    for noun, angle, mirrored in (("flute", 12.0, True), ("elephant", 0.0, False)):
        picture = fit_picture(noun, 64, angle, mirrored)
        assert max(picture.size) == 64
        left, top, right, bottom = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
        assert left + top <= 2 and (right, bottom) >= (picture.width - 1, picture.height - 1)
    turned = [np.asarray(fit_picture("flute", 64, 0.0, mirrored)) for mirrored in (False, True)]
    np.testing.assert_allclose(turned[0][:, ::-1], turned[1], atol=3)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'hard' of rich scenes; allowed: train, validation, test"):
        draw_rich_scene(np.random.default_rng(0), "hard")
    with pytest.raises(ValueError, match="unknown split 'hard'"):
        rich_rng("hard", 0)
