"""lmms-eval and the study agree question by question; what fails fails loudly; what is killed resumes.

`make test-eval` runs these in the environment that has lmms-eval.
"""

import importlib.util
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval", reason="make test-eval runs these")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from data.scenes import as_benchmarks
from idsel_core.loading.hub import load
from idsel_core.methods import get_method
from idsel_core.pruning import prune
from idsel_core.study.cli import main
from idsel_core.study.dataset import FULL, read_split
from idsel_core.study.encodings import encode_split
from idsel_core.study.evaluate import Study
from idsel_core.study.harness import run
from idsel_core.study.harness.arguments import read_template
from idsel_core.study.harness.guards import content_of, image_id
from idsel_core.study.harness.registry import GENERIC, PREFIX, WRAPPED, class_path
from idsel_core.study.harness.rows import score_of
from idsel_core.study.harness.setting import Setting, setting_from
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import DATA, MODEL
from idsel_core.study.store.results import Results
from tests.support import harness_folders, hub_folders
from tests.support.project import PROJECT

QUESTIONS = 12
BUDGETS = (64, 16)
METHODS = [get_method("idselection", budget=budget) for budget in BUDGETS]
SETTINGS = [Setting(), *(Setting(method) for method in METHODS)]
PAGE = PROJECT / "docs/benchmarks.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def asked(folder):
    """The question ids of each task, in its order."""
    return as_benchmarks.write(folder, read_split("test", PROJECT / DATA), QUESTIONS)


@pytest.fixture(scope="module")
def manager(folder, asked):
    return run.check_tasks(list(asked), [str(folder)], "llava_hf")


@pytest.fixture(scope="module")
def tasks(manager, asked):
    return run.load_tasks(list(asked), manager, chat=True)


@pytest.fixture(scope="module")
def model():
    return run.find_model(str(PROJECT / MODEL))(**run.arguments_of(str(PROJECT / MODEL)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def harness(model, tasks, manager, store, asked):
    """The metrics, and the rows of all tasks and settings with the question ids of the study."""
    metrics, refused = run.evaluate(model, run.called(str(PROJECT / MODEL)), tasks, SETTINGS, store, manager=manager)
    assert refused == {}
    rows = store.frame()
    rows["question_id"] = [
        asked[task][int(place)] for task, place in zip(rows["dataset"], rows["question_id"], strict=True)
    ]
    return metrics, rows


@pytest.fixture(scope="module")
def study(asked, tmp_path_factory):
    """The study's rows of the same questions and settings."""
    whole = read_split("test", PROJECT / DATA)
    chosen = [name for names in asked.values() for name in names]
    questions = whole.questions[whole.questions["question_id"].isin(chosen)].reset_index(drop=True)
    split = replace(whole, questions=questions, images=whole.images.loc[questions["image_id"].unique()])
    backbone, processor = open_backbone(PROJECT / MODEL)
    rows = Study(backbone, processor, split, encode_split(backbone, processor, split)).run([FULL, *METHODS])
    store = Results(tmp_path_factory.mktemp("study"))
    store.write("study", rows, {})
    return store.frame()


def test_answers_agree_with_the_study_question_by_question(harness, study, asked):
    keys = ["backbone", "method", "budget", "question_id"]
    same = ["prediction", "answer", "correct", "tokens_before", "tokens_kept", "tokens_average", "prefill_gflops"]
    same += ["importance", "normalise", "features", "update", "instruction", "gamma", "positions", "seed"]
    ours = study.set_index(keys)[same].sort_index()
    theirs = harness[1].set_index(keys)[same].sort_index()
    assert len(ours) == len(asked) * QUESTIONS * len(SETTINGS)
    letters = theirs["answer"].isin(list("ABCD")) & theirs["prediction"].str.startswith("(")
    theirs.loc[letters, "answer"] = "(" + theirs.loc[letters, "answer"] + ")"
    pd.testing.assert_frame_equal(theirs, ours, check_dtype=False, check_exact=False, rtol=1e-6)
    # The comparison means something: methods and budgets differ in their answers.
    assert theirs.groupby(["method", "budget"])["correct"].mean().nunique() == len(SETTINGS)


def test_the_metrics_of_the_harness_are_the_means_of_the_rows(harness):
    metrics, rows = harness
    means = rows.groupby(["dataset", "method", "budget"])["correct"].mean()
    found = metrics.set_index(["setting", "task", "metric"])["value"]
    for (task, method, budget), mean in means.items():
        setting = FULL if method == FULL else f"{method} at {budget:g}"
        name = {"scenes_pope": "pope_accuracy", "scenes_mmbench": "gpt_eval_score"}.get(task, "exact_match")
        scale = 100 if name == "gpt_eval_score" else 1
        assert found[setting, task, name] == pytest.approx(scale * mean), (task, setting)


def test_what_is_stored_is_not_asked_again_and_says_where_it_comes_from(harness, model, tasks, manager, store):
    began = time.monotonic()
    again, _ = run.evaluate(model, "embedded", tasks, SETTINGS, store, manager=manager)
    assert again["stored"].all() and time.monotonic() - began < 60
    pd.testing.assert_frame_equal(again.drop(columns="stored"), harness[0].drop(columns="stored"))
    for job in store.jobs():
        note = store.provenance(job)
        assert note["packages"]["lmms-eval"] and note["files"]["weights"] and note["parameters"]["key"]
        assert not store.resume_folder(job).exists()


def test_a_model_is_what_it_was_after_an_evaluation(harness, model):
    assert "generate" not in vars(model.model) and "forward" not in vars(model.model)
    assert type(model).__name__ == "PrunedLlavaHf" and not model.leaves_on_error


def test_the_class_for_other_families_answers_as_the_one_for_llava(harness, tasks, manager, tmp_path):
    generic = run.find_model(str(PROJECT / MODEL), GENERIC)(**run.arguments_of(str(PROJECT / MODEL), dtype="auto"))
    store = Results(tmp_path)
    _, refused = run.evaluate(
        generic, "embedded", {"scenes_pope": tasks["scenes_pope"]}, [SETTINGS[0], SETTINGS[2]], store, manager=manager
    )
    assert refused == {}
    keys = ["method", "question_id"]
    found = store.frame().set_index(keys)["prediction"].sort_index()
    rows = harness[1].query("dataset == 'scenes_pope' and budget != 64").reset_index(drop=True)
    rows["question_id"] = rows.groupby("method").cumcount().astype(str)
    assert found.to_dict() == rows.set_index(keys)["prediction"].to_dict()


@pytest.mark.parametrize(
    ("family", "text"),
    [("idefics3", "user: <image>{}<end_of_utterance>\nassistant:"), ("paligemma", "<image>{}")],
)
def test_a_family_without_a_class_of_its_own_is_asked_as_by_hand(family, text, tasks, manager, tmp_path):
    folder = str(tmp_path / family)
    getattr(harness_folders, f"write_{family}")(folder)
    kind, store, one = run.find_model(folder), Results(tmp_path / "rows"), {"scenes_pope": tasks["scenes_pope"]}
    assert kind.native_name == GENERIC
    model, pruned = kind(**run.arguments_of(folder, dtype="float32")), setting_from("idselection", 12)
    _, refused = run.evaluate(model, "tiny", one, [Setting(), pruned], store, manager=manager, limit=2)
    assert refused == {}
    rows = store.frame().set_index(["method", "question_id"])
    assert (rows.loc["idselection", "tokens_kept"] == 12).all() and (rows.loc["full", "tokens_kept"] > 30).all()
    loaded, processor = load(folder, dtype="float32")
    for place, doc in enumerate(tasks["scenes_pope"].test_docs().select(range(2))):
        inputs = processor(text=text.format(doc["question"]), images=[doc["image"].convert("RGB")], return_tensors="pt")
        for method, block in (("full", nullcontext()), ("idselection", prune(loaded, pruned.method))):
            with block, torch.no_grad():
                output = loaded.generate(**inputs, max_new_tokens=1, do_sample=False)
            said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
            assert rows.loc[(method, str(place)), "prediction"] == said.strip()


@pytest.mark.parametrize(("family", "positions"), [("qwen2_5_vl", "keep"), ("paligemma", "compact")])
def test_rows_say_which_positions_the_family_gives_its_tokens(family, positions, tasks, manager, tmp_path):
    folder = str(hub_folders.save(family, tmp_path / family))
    model = run.find_model(folder, GENERIC)(**run.arguments_of(folder, dtype="float32"))
    store, one = Results(tmp_path / "rows"), {"scenes_pope": tasks["scenes_pope"]}
    settings = [Setting(), setting_from("random", 4), setting_from("random", 4, positions="keep")]
    _, refused = run.evaluate(model, "tiny", one, settings, store, manager=manager, limit=1)
    assert refused == {}
    rows = store.frame().sort_values("tokens_kept")
    assert sorted(rows["positions"]) == sorted([positions, positions, "keep"])
    assert (rows.loc[rows["method"] == FULL, "positions"] == positions).all()
    assert model.run.positions == "keep"


def changed(folder, name, text, **config):
    """Write a task beside another one, with another configuration."""
    whole = (folder / f"{name}.yaml").read_text()
    for key, value in config.items():
        whole = re.sub(rf"^{key}: .*$", f"{key}: {value}", whole, flags=re.MULTILINE)
    (folder / f"{text}.yaml").write_text(whole.replace(f"task: {name}", f"task: {text}"))


def test_answers_without_a_score_are_a_file_for_the_server(folder, asked, model, tmp_path, capsys):
    text = (folder / "scenes_textvqa.yaml").read_text().replace("task: scenes_textvqa", "task: scenes_hidden")
    given = "submission\n  aggregation: !function lmms_eval.tasks.textvqa.utils.textvqa_aggregate_submissions"
    (folder / "scenes_hidden.yaml").write_text(text.replace("exact_match\n  aggregation: mean", given))
    manager = run.check_tasks(["scenes_hidden"], [str(folder)], "llava_hf")
    loaded, store = run.load_tasks(["scenes_hidden"], manager, chat=True), Results(tmp_path)
    found, refused = run.evaluate(model, "embedded", loaded, SETTINGS[:1], store, manager=manager, limit=2)
    assert refused == {} and store.jobs() == [] and found["metric"].tolist() == ["submission"]
    (file,) = tmp_path.glob("files/*/submissions/*.json")
    assert len(json.loads(file.read_text())) == 2
    assert "answers for the benchmark's server are in" in capsys.readouterr().err


def test_a_question_without_an_image_is_answered(folder, asked, model, tmp_path):
    changed(folder, "scenes_pope", "scenes_blind", doc_to_visual="!function utils.no_image")
    manager = run.check_tasks(["scenes_blind"], [str(folder)], "llava_hf")
    loaded = run.load_tasks(["scenes_blind"], manager, chat=True)
    store = Results(tmp_path)
    _, refused = run.evaluate(model, "embedded", loaded, SETTINGS[::2], store, manager=manager, limit=3)
    assert refused == {}
    rows = store.frame()
    assert len(rows) == 6 and (rows["tokens_before"] == 0).all() and (rows["image_id"] == "none").all()
    by_method = rows.pivot(index="question_id", columns="method", values="prediction")
    assert (by_method["full"] == by_method["idselection"]).all() and by_method["full"].isin(["yes", "no"]).all()


def test_a_method_that_is_refused_is_named_and_the_others_go_on(model, tasks, manager, tmp_path, capsys):
    store = Results(tmp_path)
    one = {"scenes_pope": tasks["scenes_pope"]}
    settings = [setting_from("evs", 64), setting_from("random", 64)]
    metrics, refused = run.evaluate(model, "embedded", one, settings, store, manager=manager, limit=2)
    assert set(metrics["setting"]) == {"random at 64"}
    assert list(refused) == ["evs at 64, scenes_pope"]
    assert "the images are not frames of a video" in refused["evs at 64, scenes_pope"]
    assert "evs at 64, scenes_pope" in capsys.readouterr().err


def test_what_the_classes_swallow_is_raised(model, tasks, manager, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    model.use(Setting())
    monkeypatch.setitem(vars(model.model), "generate", broken)
    with pytest.raises(RuntimeError, match="scenes_pope, question 0: out of memory"):
        run.evaluate(model, "x", {"scenes_pope": tasks["scenes_pope"]}, [Setting()], Results(tmp_path), manager=manager)


def test_images_and_files_name_the_content_and_other_lists_do_not(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"1234")
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    names = [image_id(content_of([{"type": "image", "url": one}])) for one in (red, red.copy(), blue, str(clip))]
    assert names[0] == names[1] and len(set(names)) == 3
    clip.write_bytes(b"12345")
    assert image_id(content_of([str(clip)])) not in (*names, "none")
    for words in (
        ["Which", 2, "of these?"],
        ["bytes", "RGB", "x"],
        ["file", "x", 1, 2],
        ["a", "b"],
        [],
        [str(tmp_path / "gone.mp4")],
    ):
        assert image_id(content_of([{"type": "text", "text": words}])) == "none"
    assert image_id(content_of(["Which", 2, red])) == image_id(content_of(red))


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}


def idsel(*words, results, folder):
    command = [sys.executable, "-m", "idsel_core.study.cli", "harness", "--backbone", str(PROJECT / MODEL)]
    return [*command, "--include", str(folder), "--results", str(results), *words]


def test_a_killed_run_resumes_at_the_next_question(folder, asked, harness, tmp_path, capsys):
    words = ["--tasks", "scenes_pope", "--method", "idselection", "--budget", "16"]
    command = idsel(*words, results=tmp_path, folder=folder)
    log = tmp_path / "log"
    with log.open("wb") as out:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=out, stderr=out)
        while not (lines := [*tmp_path.glob(".resume/*/requests.jsonl")]) or lines[0].read_bytes().count(b"\n") < 3:
            assert first.poll() is None, log.read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
    (journal,) = lines
    kept = journal.read_text().splitlines()
    answered = sum(line.endswith("}}") for line in kept)
    assert 3 <= answered < QUESTIONS
    # Answers of the journal are not asked again: what it says now is believed.
    entry = json.loads(kept[0])
    entry["answer"]["text"] = "maybe"
    journal.write_text("\n".join([json.dumps(entry), *kept[1:]]) + "\n")
    assert main(command[3:]) == 0
    assert f"{answered} questions were answered before" in capsys.readouterr().err
    found = Results(tmp_path).frame().set_index("question_id")["prediction"]
    rows = harness[1].query("dataset == 'scenes_pope' and budget == 16").reset_index(drop=True)
    assert found["0"] == "maybe"
    expected = dict(zip(rows.index.astype(str), rows["prediction"], strict=True))
    del expected["0"]
    assert found.drop("0").to_dict() == expected


def lmms_eval(folder, more, **options):
    command = [sys.executable, "-m", "lmms_eval", "--model", "idsel_llava_hf", "--include_path", str(folder)]
    command += ["--tasks", "scenes_pope", "--limit", "2", "--batch_size", "1", "--device", "cpu", "--model_args"]
    given = f"pretrained={PROJECT / MODEL},device_map=cpu,{more}"
    return subprocess.run([*command, given], env=environment(), capture_output=True, text=True, **options)


def test_a_refused_method_fails_both_doors(folder, asked, tmp_path, capsys):
    words = ["--tasks", "scenes_pope", "--method", "evs", "--limit", "1"]
    assert main(idsel(*words, results=tmp_path, folder=folder)[3:]) == 1
    said = capsys.readouterr().out
    assert "not asked: evs at 64, scenes_pope: task scenes_pope, question 0: frames is not available" in said
    done = lmms_eval(folder, "method=evs,budget=64", cwd=tmp_path)
    assert done.returncode == 1 and "frames is not available" in done.stderr, done.stderr
    with pytest.raises(SystemExit, match="idsel_llava_hf: evs needs a budget"):
        run.find_model(str(PROJECT / MODEL)).create_from_arg_string(f"pretrained={PROJECT / MODEL},method=evs")


def test_the_command_of_the_harness_prunes_with_the_knobs_that_it_is_given(folder, asked, tmp_path):
    journal = tmp_path / "answers.jsonl"
    done = lmms_eval(folder, f"method=idselection,budget=32,gamma=5,journal={journal}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line)["answer"] for line in journal.read_text().splitlines()]
    assert [note["layers"] for note in notes] == [[32] * 5] * 2
    assert "pope_accuracy" in done.stdout


def without(package, words, message):
    """A wrong call that is one only where a package is missing."""
    there = importlib.util.find_spec(package) is not None
    return pytest.param(["--tasks", "scenes_pope", *words], message, marks=pytest.mark.skipif(there, reason=package))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "popee"], "unknown task 'popee' among "),
        (["--tasks", "pope"], "the data set of task pope"),
        (["--tasks", "scenes_pope", "--model", "llava"], "unknown model 'llava', did you mean 'llava_hf'?"),
        (["--tasks", "scenes_pope", "--template", "vicuna"], "there is no chat template 'vicuna'; give a file, or"),
        (["--tasks", "scenes_pope", "--model-args", "dtyp=float16"], "has no argument 'dtyp'; allowed are"),
        (["--tasks", "scenes_pope", "--knob", "gama", "3"], "none of the methods full, idselection has a knob 'gama'"),
        (["--tasks", "scenes_pope", "--device", "cuda:7"], "torch sees no GPU"),
        (["--tasks", "scenes_pope", "--model", "video_llava"], "video_llava runs on a GPU alone"),
        without("torchvision", ["--model", "qwen2_5_vl"], "needs qwen_vl_utils and torchvision"),
        without("librosa", ["--model", "qwen2_audio"], "needs librosa, which is not installed"),
    ],
)
def test_a_wrong_call_is_told_in_one_sentence(words, message, folder, asked, tmp_path, capsys):
    assert main(idsel(*words, results=tmp_path, folder=folder)[3:]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not Results(tmp_path).jobs()


def test_every_model_of_the_entry_point_is_there_and_is_pruned():
    from lmms_eval.models import get_model, get_model_manifest

    for name in WRAPPED:
        manifest = get_model_manifest(PREFIX + name)
        assert manifest.simple_class_path or manifest.chat_class_path
        assert [class_path(kind, name) for kind in ("simple", "chat")] != [None, None]
    names = [name for name in WRAPPED if name != "qwen2_audio"]  # needs librosa
    found = {name: get_model(PREFIX + name) for name in names}
    assert {name: one.__name__ for name, one in found.items() if not one.__name__.startswith("Pruned")} == {}


@pytest.mark.parametrize("name", [name for name in WRAPPED if name != "qwen2_audio"])
def test_what_pruning_adds_to_a_class_hides_nothing_of_it(name):
    kind = run.find_model(str(PROJECT / MODEL), name)
    wanted = {"generate_until", "generate_until_multi_round", "generate_visual_cot", "loglikelihood", "clean"}
    own = {one for one in vars(kind) if not one.startswith("__")} - wanted - {"create_from_arg_string"}
    own -= {one for one in own if one.startswith("_abc")}
    base = kind.__mro__[1]
    source = "".join(
        inspect.getsource(each) for each in kind.__mro__[1:] if each.__module__.startswith(("lmms", "ids"))
    )
    set_by_it = {"arguments", "processor_name", "relevance", "adapter", "notes", "times", "setting", "run", "journal"}
    assert {one for one in own if hasattr(base, one)} == set()
    assert {one for one in own | set_by_it if re.search(rf"\bself\.{one}\b", source)} == set()


def test_a_wrapped_model_keeps_the_prompts_that_tasks_have_for_it():
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_defaults=False, model_name="idsel_qwen3_vl")
    get_model("idsel_llava_hf")
    assert manager.model_name == "qwen3_vl"
    assert TaskManager("ERROR", include_defaults=False, model_name="other").model_name == "other"


def test_the_template_of_llava_is_the_one_of_its_own_scripts(model):
    messages = [{"role": "user", "content": [{"type": "image", "url": None}, {"type": "text", "text": "Is it red?"}]}]
    text = model._image_processor.apply_chat_template(
        messages, chat_template=read_template("vicuna_v1"), tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nIs it red? ASSISTANT:"
    )


def test_every_task_of_the_page_is_there_and_ours_load(manager):
    from lmms_eval.api.task import TaskConfig

    section = PAGE.read_text().partition("\n## Tasks\n")[2].partition("\n## ")[0]
    table = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 20
    assert sorted(named - set(manager.all_tasks)) == []
    ours = {name for name in manager.all_tasks if name.startswith(PREFIX)}
    assert ours <= named and len(ours) == len([*run.TASKS.glob("*.yaml")])
    for name in ours:
        config = TaskConfig(**manager._get_config(name))
        assert config.dataset_path and config.test_split and callable(config.process_results)


def test_our_prompt_of_mmbench_cn_has_no_hint_where_there_is_none(manager):
    config = manager._get_config("idsel_mmbench_cn_dev_static")
    doc = {"question": "Q", "A": "x", "B": "y", "C": "nan", "D": "nan", "answer": "A", "category": "c", "index": 1}
    doc |= {"L2-category": "l", "source": "s", "split": "dev", "hint": "nan"}
    given = config["lmms_eval_specific_kwargs"]["default"]
    assert config["doc_to_text"](doc, given).startswith("Q ")
    assert config["doc_to_text"]({**doc, "hint": "H"}, given).startswith("H Q ")
    value = config["process_results"](doc, ["A"])["gpt_eval_score"]
    assert score_of({"gpt_eval_score": value}, ["gpt_eval_score"])[1] == 1.0
    assert score_of({"gpt_eval_score": {**value, "prediction": "B."}}, ["gpt_eval_score"])[1] == 0.0
