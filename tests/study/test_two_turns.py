"""Second questions: pairs, rows, and that kept picks are those of the cache of the first turn."""

import numpy as np
import pandas as pd
import pytest
import torch

from idsel_core import IDSelection, TopK, get_method, prune
from idsel_core.methods import FastV
from idsel_core.study.dataset import FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.report.two_turns import about_two_turns, two_turns_table
from idsel_core.study.store.results import Results
from idsel_core.study.two_turns import ALONE, ANEW, KEPT, ask_second_questions, pair_questions

METHOD = TopK(budget=12, importance="instruction")


@pytest.fixture(scope="module")
def study():
    return open_study("validation", limit=14)


@pytest.fixture(scope="module")
def rows(study):
    return ask_second_questions(
        study, [FULL, METHOD, get_method("diversity", budget=12)], pair_questions(study.split.questions), batch=8
    )


def test_each_question_follows_the_one_before_it():
    asked = pd.DataFrame({"image_id": ["a", "b", "a", "c", "a", "b"], "question": list("pqrstu")})
    pairs = pair_questions(asked)
    assert list(zip(pairs["first"], pairs["question"], strict=True)) == [
        ("t", "p"),
        ("u", "q"),
        ("p", "r"),
        ("r", "t"),
        ("q", "u"),
    ]
    with pytest.raises(ValueError, match="no image has two questions"):
        pair_questions(asked.iloc[[0, 1]])


def test_rows_are_stored_and_told_apart(study, rows, tmp_path):
    pairs = pair_questions(study.split.questions)
    ways = {KEPT, ANEW, KEPT + ALONE, ANEW + ALONE}
    for method, part in rows.groupby("method"):
        assert set(part["conversation"]) == (ways if method != FULL else {ANEW, ANEW + ALONE})
        assert (part.groupby("conversation").size() == len(pairs)).all()
    results = Results(tmp_path)
    results.write("12_two_turns", rows, {})
    stored = results.frame("12_two_turns", method="diversity")
    assert stored["run_id"].nunique() == 4
    # A method that never looks at the question picks the same tokens for both.
    wide = stored.pivot(index="question_id", columns="conversation", values="prediction")
    assert wide[KEPT].equals(wide[ANEW]) and wide[KEPT + ALONE].equals(wide[ANEW + ALONE])
    alone = rows[(rows["method"] == FULL) & (rows["conversation"] == ANEW + ALONE)]
    single = study.run([FULL]).set_index("question_id").loc[alone["question_id"]]
    assert (alone["prediction"].to_numpy() == single["prediction"].to_numpy()).all()


def test_rows_tell_what_those_of_single_questions_tell(study, tmp_path):
    methods = [FULL, IDSelection(budget=12, gamma="auto", exhausted="continue")]
    pairs = pair_questions(study.split.questions).head(2)
    rows = ask_second_questions(study, methods, pairs)
    Results(tmp_path).write("two_turns", rows, {})
    single = study.run(methods).set_index(["method", "question_id"])
    rows = rows[rows["conversation"] == ANEW + ALONE].set_index(["method", "question_id"])
    same = [name for name in single if name not in ("prefill_gflops", "scoring_gflops")]
    assert set(same) <= set(rows)
    pd.testing.assert_frame_equal(rows[same], single.loc[rows.index, same], check_dtype=False)
    assert set(rows["gamma"].dropna()) == {-1.0}


@torch.no_grad()
def test_kept_picks_answer_as_the_cache_of_the_first_turn(study, rows):
    model, processor = study.backbone.model, study.processor
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    kept = rows[(rows["method"] == "topk") & (rows["conversation"] == KEPT)].set_index("question_id")
    for pair in pair_questions(study.split.questions).head(3).itertuples():
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": pair.first}]}]
        with prune(model, METHOD):
            for turn in (1, 2):
                text = processor.apply_chat_template(chat, add_generation_prompt=True)
                inputs = processor(images=study.split.picture(pair.image_id), text=text, return_tensors="pt")
                cache = {} if turn == 1 else {"past_key_values": output.past_key_values}  # noqa: F821
                output = model.generate(**inputs, **options, **cache)
                answer = processor.decode(output.sequences[0, -1:], skip_special_tokens=True).strip()
                chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
                chat.append({"role": "user", "content": [{"type": "text", "text": pair.question}]})
        assert answer == kept.loc[pair.question_id, "prediction"]


def test_what_cannot_be_asked_is_refused(study):
    pairs = pair_questions(study.split.questions)
    with pytest.raises(ValueError, match="fastv does not choose before the language model"):
        ask_second_questions(study, [FastV(64)], pairs)
    with pytest.raises(ValueError, match="'topk' is no method: give one such as"):
        ask_second_questions(study, ["topk"], pairs)


def test_table_and_sentences_say_what_the_rows_hold():
    draw = np.random.default_rng(0)
    right = {KEPT: draw.random(200) < 0.4, ANEW: draw.random(200) < 0.9}
    parts = []
    for method, budget in ((FULL, 576), ("topk", 16)):
        for way in (KEPT, ANEW) if method != FULL else (ANEW,):
            for after in ("", ALONE):
                frame = {"method": method, "budget": budget, "conversation": way + after, "question_type": "count"}
                parts.append(pd.DataFrame({**frame, "question_id": range(200), "correct": right[way].astype(float)}))
    rows = pd.concat(parts)
    table = two_turns_table(rows, resamples=200)
    assert list(table["budget"]) == [16, 16] and table["prompt"].nunique() == 2
    assert table["picks of the first question"][0].startswith(f"{100 * right[KEPT].mean():.1f} [")
    assert table["picks of its own"][0].split()[0] == table["all tokens"][0].split()[0]
    said = about_two_turns(rows, resamples=200)
    gap = 100 * (right[ANEW].mean() - right[KEPT].mean())
    assert f"above those of the first for top-K importance ({gap:+.1f} points" in said
