"""The data set: balanced answers, questions that the image answers, and nothing shared between splits."""

import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from data.scenes.ask import QUESTION_TYPES, ask, vocabulary
from data.scenes.draw import COLORS, NOUNS, SPLITS, Scene, draw_scene, handwriting, scene_rng
from data.scenes.make import choose, encode_jpeg
from idsel_core.study.paths import DATA

STORED = SPLITS[1:]
each_part = pytest.mark.parametrize("split", STORED)


def questions(split: str) -> pd.DataFrame:
    return pd.read_parquet(DATA / f"{split}-questions.parquet")


@each_part
def test_the_best_constant_answer_is_at_chance(split):
    for (question_type, template), rows in questions(split).groupby(["question_type", "template"]):
        chance = 1 / len(rows["choices"].iloc[0])
        constant = rows["answer"].value_counts(normalize=True).iloc[0]
        # Greedy balancing leaves a handful of answers over; a template of few questions feels them more.
        assert constant <= chance + max(0.03, 2 / len(rows)), (question_type, template)


def test_the_text_alone_does_not_tell_the_answer():
    """A linear reader of the questions, trained on as many others, stays at chance."""
    rng = np.random.default_rng(0)
    seen = [q for k in range(400) for q in ask(rng, _unpainted(k), 21)]
    for question_type, rows in questions("test").groupby("question_type"):
        train = [q for q in seen if q.question_type == question_type]
        reader = make_pipeline(CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)), LogisticRegression(C=0.1))
        reader.fit([q.text for q in train], [q.answer for q in train])
        right = (reader.predict(rows["question"]) == rows["answer"]).mean()
        chance = rows["choices"].map(lambda choices: 1 / len(choices)).mean()
        assert right <= chance + 4 * np.sqrt(chance * (1 - chance) / len(rows)), question_type


def _unpainted(k: int) -> Scene:
    return draw_scene(scene_rng("train", 50_000_000 + k), "train")


@each_part
def test_every_family_is_there_and_every_answer_is_allowed(split):
    rows = questions(split)
    assert set(rows["question_type"]) == set(QUESTION_TYPES)
    assert rows["question_id"].is_unique
    assert all(answer in choices for answer, choices in zip(rows["answer"], rows["choices"], strict=True))


def test_the_test_part_is_large_enough():
    rows = questions("test")
    assert len(rows) >= 3000
    assert rows["image_id"].nunique() >= 600


@each_part
def test_images_are_what_the_generator_draws(split):
    images = pd.read_parquet(DATA / f"{split}-images.parquet").set_index("image_id")
    name = f"{split}-0003"
    rng = scene_rng(split, 3)
    scene = draw_scene(rng, split, 7, 10, hard=True) if split == "hard" else draw_scene(rng, split)
    assert [dict(t) for t in images.at[name, "objects"]] == [t.as_dict() for t in scene.things]
    stored = np.asarray(Image.open(io.BytesIO(images.at[name, "image"])), float)
    assert np.abs(stored - np.asarray(scene.image, float)).mean() < 8
    assert encode_jpeg(scene.image)[:2] == b"\xff\xd8"


def test_parts_share_no_handwriting():
    seen = Counter(sample.tobytes() for split in SPLITS for digit in handwriting(split).values() for sample in digit)
    assert max(seen.values()) == 1
    assert all(len(handwriting(split)[str(d)]) >= 5 for split in SPLITS for d in range(10))


def test_parts_share_no_image():
    seen = Counter(
        image for split in STORED for image in pd.read_parquet(DATA / f"{split}-images.parquet")["image"].map(bytes)
    )
    assert max(seen.values()) == 1


@pytest.mark.parametrize("k", range(12))
def test_questions_are_true_of_the_scene(k):
    scene = _unpainted(k)
    phrases = [t.phrase for t in scene.things]
    for question in ask(np.random.default_rng(k), scene, 40):
        assert question.answer in question.choices
        asked = [scene.things[i] for i in question.about]
        match question.question_type, question.template:
            case "existence", "phrase":
                target = question.text.split(maxsplit=3)[3].removesuffix("?")
                assert (target in phrases) == (question.answer == "yes")
            case "counting", "color":
                assert int(question.answer) == sum(t.color == question.text.split()[2] for t in scene.things)
            case "attribute", "color":
                assert question.answer == asked[0].color
            case "reading", _:
                assert question.answer == asked[0].text
            case "position", _:
                x, y = asked[0].center
                row = "bottom" if y > scene.side / 2 else "top"
                assert question.answer == f"{row}-{'right' if x > scene.side / 2 else 'left'}"
            case "relation", _:
                (x, y), (u, v) = asked[0].center, asked[1].center
                true = {"left": x < u, "right": x > u, "above": y < v, "below": y > v}
                word = next(w for w in question.text.split() if w in true)
                assert (question.answer == "yes") == true[word]


def test_objects_do_not_overlap_and_lie_inside():
    for k in range(20):
        scene = draw_scene(scene_rng("test", k), "test", 7, 10, hard=True)
        for i, a in enumerate(scene.things):
            assert 0 <= a.left < a.right <= scene.side and 0 <= a.top < a.bottom <= scene.side
            for b in scene.things[:i]:
                assert a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top


def test_choosing_prefers_what_is_rare():
    pools = [(scene := _unpainted(k), ask(np.random.default_rng(k), scene, 60)) for k in range(40)]
    picked = [q for qs in choose(pools, 3) for q in qs]
    counts = Counter(q.question_type for q in picked)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_scene_is_drawn_again_from_its_number():
    first, again = (draw_scene(scene_rng("test", 5), "test") for _ in range(2))
    assert first.things == again.things
    assert first.image.tobytes() == again.image.tobytes()


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="unknown split 'trial'; allowed: train, validation, test, hard"):
        draw_scene(np.random.default_rng(0), "trial")


def test_every_word_is_in_the_vocabulary():
    assert {*NOUNS, *COLORS, "yes", "(A)", "top-left"} <= set(vocabulary())


def test_questions_are_of_the_types_asked_for():
    scenes = [(np.random.default_rng(k), _unpainted(k)) for k in range(10)]
    chosen = {q.question_type for rng, scene in scenes for q in ask(rng, scene, 12, types=["existence", "position"])}
    assert chosen == {"existence", "position"}
    same = [
        [ask(np.random.default_rng(k), _unpainted(k), 12, **more) for k in range(3)]
        for more in ({}, {"types": [*QUESTION_TYPES]})
    ]
    assert same[0] == same[1]
