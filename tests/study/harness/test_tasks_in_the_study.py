"""Tasks of lmms-eval: what is read of a task object, and, where lmms-eval is installed, a task of its own."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from idsel_core.study import lmms_tasks
from idsel_core.study.dataset import read_data
from idsel_core.study.lmms_tasks import Task, open_task
from idsel_core.study.metrics import chance, score_each
from idsel_core.study.paths import DATA

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
DOCS = [
    {"q": "Red?", "a": "yes", "images": [RED]},
    {"q": "Blue?", "a": "no", "images": [RED.copy()]},
    {"q": "The same?", "a": "no", "images": [RED, BLUE]},
]


class FirstLetters:
    """A filter that leaves the first three letters of an answer."""

    def apply(self, answers, docs):
        assert len(answers) == len(docs)
        for answer in answers:
            answer.filtered_resps["first"] = answer.resps[0][:3]


def process(doc, results):
    right = doc.pop("a")
    return {
        "note": "x",
        "accuracy": {"score": float(results[0].lower() == right)},
        "pairs": {"pair": (results[0], right)},
    }


def share(pairs):
    return sum(one["pair"][0] == one["pair"][1] for one in pairs) / len(pairs)


def judged(pairs):
    raise AssertionError("ask the judge")


class Inner:
    """As much of a task object of lmms-eval as is read."""

    OUTPUT_TYPE = "generate_until"
    process_results = staticmethod(process)

    def __init__(self, docs=DOCS, metrics=None, filters=()):
        self.eval_docs = docs
        self._filters = list(filters)
        self._metrics = metrics or {"accuracy": np.mean}
        self.config = SimpleNamespace(
            doc_to_choice=None, generation_kwargs={"max_new_tokens": 5}, process_results=process
        )

    def doc_to_text(self, doc):
        return f"{doc['q']} Answer yes or no."

    def doc_to_target(self, doc):
        return doc["a"]

    def doc_to_visual(self, doc):
        return doc["images"]

    def aggregation(self):
        return self._metrics


@pytest.fixture
def use(monkeypatch):
    def use(inner):
        for module in ("idsel_core.study.sources.lmms", "idsel_core.study.metrics.lmms"):
            monkeypatch.setattr(f"{module}.open_task", lambda name: Task(name, inner))

    return use


def test_prompts_images_and_answers_are_the_tasks_own(use):
    use(Inner())
    split = read_data("lmms:fake", "any")
    assert (split.dataset, split.name, split.new_tokens, split.has_boxes) == ("fake", "fake", 5, False)
    asked = split.questions
    assert asked["question_id"].tolist() == ["0", "1", "2"]
    assert asked["question"].tolist() == [f"{doc['q']} Answer yes or no." for doc in DOCS]
    assert asked["answers"].tolist() == [["yes"], ["no"], ["no"]]
    (red,), (again,), (first, blue) = asked["image_ids"]
    assert red == again == first != blue and list(split.images.index) == [red, blue]
    assert split.picture(blue).getpixel((0, 0)) == (0, 0, 255)
    assert chance(asked).tolist() == [0.5] * 3
    assert len(read_data("lmms:fake", limit=2).questions) == 2


def test_answers_are_scored_by_the_tasks_filters_and_functions(use):
    use(Inner(filters=[FirstLetters()]))
    split = read_data("lmms:fake")
    assert score_each(["YES, it is", "no", "none"], split.questions).tolist() == [1, 1, 0]
    # The function changes the entry that it is given.
    assert score_each(["yes", "nope", "no!"], split.questions).tolist() == [1, 0, 0]
    use(Inner())
    assert score_each(["yes", "no", "no"], split.questions).tolist() == [1, 1, 1]


def test_a_task_that_scores_no_single_answer_is_refused(use):
    for metrics in ({"pairs": share}, {"other": share}):
        use(Inner(metrics=metrics))
        with pytest.raises(ValueError, match=r"task 'fake' does not score single answers: none of the metrics"):
            score_each(["yes", "yes", "no"], read_data("lmms:fake").questions)


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ({"q": "?", "a": "yes", "images": ["clip.mp4"]}, "task 'fake' shows str, and only images can be read"),
        ({"q": "?", "a": "yes", "images": []}, "question 1 of task 'fake' has no image"),
        ({"q": "?", "a": None, "images": [RED]}, "question 1 of task 'fake' has no right answer"),
    ],
)
def test_questions_that_cannot_be_asked(use, doc, message):
    use(Inner([DOCS[0], doc]))
    with pytest.raises(ValueError, match=message):
        read_data("lmms:fake")


def test_a_judge_is_seen_before_it_is_asked():
    assert lmms_tasks._asks_a_judge(judged) and not lmms_tasks._asks_a_judge(process)


@pytest.mark.skipif(INSTALLED, reason="lmms-eval is installed")
def test_a_sentence_names_the_extra_where_it_is_missing():
    with pytest.raises(ImportError, match=r"lmms:pope needs lmms-eval, which is not installed: pip install .*\[eval\]"):
        read_data("lmms:pope")


TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pope_doc_to_visual
doc_to_text: !function utils.pope_doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3}}
process_results: !function utils.pope_process_results
metric_list:
  - {{metric: pope_accuracy, aggregation: !function utils.pope_aggregate_accuracy, higher_is_better: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: " Short."}}
"""


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
class TestInstalled:
    def test_a_task_of_ones_own_is_read_and_scored_as_lmms_eval_does(self, tmp_path, monkeypatch):
        import datasets

        split = read_data(DATA, "validation")
        asked = split.questions[split.questions["question_type"] == "existence"].head(20)
        columns = {name: asked[name].tolist() for name in ("question_id", "question", "answer")}
        columns["image"] = [{"bytes": split.images.at[name, "image"], "path": None} for name in asked["image_id"]]
        features = datasets.Features({name: datasets.Value("string") for name in columns} | {"image": datasets.Image()})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data.parquet")
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks/mine.yaml").write_text(TASK.format(name="mine", data=tmp_path / "data.parquet"))
        (tmp_path / "tasks/utils.py").write_text("from lmms_eval.tasks.pope.utils import *\n")
        read = read_data(f"lmms:{tmp_path}/tasks/mine")
        assert read.questions["question"].tolist() == [f"{question} Short." for question in asked["question"]]
        assert read.questions["answer"].tolist() == asked["answer"].tolist()
        assert (read.name, read.dataset) == ("test", "mine")
        assert len(read.images) == asked["image_id"].nunique() and read.new_tokens == 3
        drawn = np.random.default_rng(0)
        predictions = [str(drawn.choice(["Yes", "no ", "Yes.", "perhaps"])) for _ in asked["answer"]]
        inner = open_task(f"{tmp_path}/tasks/mine").inner
        theirs = [
            inner.process_results(doc, [p])["pope_accuracy"]
            for doc, p in zip(inner.eval_docs, predictions, strict=True)
        ]
        found = score_each(predictions, read.questions)
        assert found.mean() == inner.aggregation()["pope_accuracy"](theirs) and 0 < found.mean() < 1

    def test_names_that_lmms_eval_does_not_know(self):
        with pytest.raises(ValueError, match=r"unknown task 'pop' among \d+; near it are: .*\bpope\b"):
            open_task("pop")
        with pytest.raises(ValueError, match="'pope_full' of lmms-eval stands for several tasks"):
            open_task("pope_full")

    def test_metrics_agree_with_those_of_lmms_eval(self):
        from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
        from lmms_eval.tasks.chartqa.utils import relaxed_correctness
        from lmms_eval.tasks.vqav2.utils import vqav2_process_results

        from idsel_core.study.metrics.relaxed_accuracy import relaxed_accuracy
        from idsel_core.study.metrics.vqa_accuracy import normalised, vqa_accuracy

        drawn = np.random.default_rng(0)
        words = [
            "a",
            "the",
            "two",
            "None",
            "dont",
            "isn't",
            "1,000",
            "3.5",
            "red.",
            "black-white",
            "Yes!",
            "what's,",
            "it",
            ";",
            "no",
        ]
        process = EvalAIAnswerProcessor()
        for _ in range(500):
            text = " ".join(drawn.choice(words, drawn.integers(1, 4)))
            assert normalised(text) == process.process_digit_article(process.process_punctuation(text)), text
            answers = [" ".join(drawn.choice(words[:4], 1)) for _ in range(10)]
            doc = {"question_id": 0, "answers": [{"answer": one, "answer_id": n} for n, one in enumerate(answers)]}
            guess = str(drawn.choice(words[:4]))
            assert vqa_accuracy(guess, answers) == pytest.approx(vqav2_process_results(doc, [guess])["exact_match"])
            numbers = [str(drawn.choice(["5", "5.2", "5.3", "0", "7%", "0.07", "x", "X", "-5", "1,000"])) for _ in "ab"]
            assert relaxed_accuracy(numbers[0], numbers[1:]) == float(relaxed_correctness(*numbers)), numbers
