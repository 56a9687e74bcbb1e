"""Questions about another scene's image: each image is shown as often as another was, and the answers follow it."""

from dataclasses import replace

import pytest

from idsel_core.study.dataset import FULL, OTHER, read_split
from idsel_core.study.open_study import open_study
from idsel_core.study.other_images import ask_other_images, with_other_images


def test_every_question_shows_the_next_image():
    split = read_split("validation", limit=14)
    other = with_other_images(split).questions
    asked = split.questions
    names = list(dict.fromkeys(asked["image_id"]))
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    assert other["image_id"].tolist() == [following[name] for name in asked["image_id"]]
    assert other["image_ids"].tolist() == [[name] for name in other["image_id"]]
    kept = ["question_id", "question", "question_type", "answer", "choices"]
    assert other[kept].equals(asked[kept])
    assert len(names) > 1 and (other["image_id"] != asked["image_id"]).all()


def test_questions_of_several_images_are_shown_those_of_another():
    split = read_split("validation", limit=7)
    several = split.questions.head(3).assign(image_id=["a", "ab", "a"], image_ids=[["a"], ["a", "b"], ["a"]])
    other = with_other_images(replace(split, questions=several)).questions
    assert other["image_ids"].tolist() == [["a", "b"], ["a"], ["a", "b"]]


def test_one_image_alone_is_refused():
    split = read_split("validation", limit=7)
    alone = split.questions.iloc[:1]
    with pytest.raises(ValueError, match=r"all questions of validation are about 'validation-.*no other image to show"):
        with_other_images(replace(split, questions=alone))


def test_answers_follow_the_image_that_is_shown():
    study = open_study("validation", limit=14)
    rows = ask_other_images(study, batch=5)
    assert set(rows["method"]) == {OTHER} and (rows["tokens_kept"] == 576).all()
    shown = with_other_images(study.split).questions
    assert rows["image_id"].tolist() == shown["image_id"].tolist()
    own = study.run([FULL], batch=5)
    assert own["correct"].mean() > rows["correct"].mean()
    again = replace(study, split=replace(study.split, questions=shown.iloc[[3]])).run([FULL])
    assert again["prediction"].item() == rows["prediction"].iloc[3]
