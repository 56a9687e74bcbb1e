r"""Evaluate a model on public benchmarks through lmms-eval, with several methods and budgets.

The model is loaded once. Rows go into a store, one a question; what the store holds is not asked again, and a killed
run resumes at the next question. docs/benchmarks.md lists tasks. `make eval-env` installs what this needs.

For example:

    idsel harness --backbone llava-hf/llava-1.5-7b-hf --device cuda --template vicuna_v1 --tasks pope,gqa \
        --method full idselection cdpruner --budget 64 16 \
        --companion openai/clip-vit-large-patch14-336 --knob negated true
    idsel harness --backbone data/backbone/assembled --include .cache/scenes_tasks --tasks scenes_pope --limit 50
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from idsel_core.study.commands._arguments import natural, number_or_share

ROWS = Path("results/harness")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shown = "(default: %(default)s)"
    parser.add_argument("--backbone", required=True, metavar="MODEL", help="hub id, or folder laid out like one")
    parser.add_argument(
        "--tasks", required=True, nargs="+", metavar="TASK", help="tasks or groups of lmms-eval, or ours, idsel_..."
    )
    parser.add_argument(
        "--method",
        nargs="+",
        default=["full", "idselection"],
        metavar="NAME",
        help="methods, and full for all visual tokens (default: full idselection)",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        default=["64"],
        metavar="K",
        help="visual tokens to keep, or shares such as 0.1, for each method (default: 64)",
    )
    parser.add_argument(
        "--knob",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a setting of those methods that have it, e.g. gamma 5; may be given several times",
    )
    parser.add_argument("--limit", type=natural, default=0, metavar="N", help="first N questions a task; 0 asks all")
    parser.add_argument("--device", default="cpu", help=f"cpu, cuda, cuda:1, or auto for all GPUs {shown}")
    parser.add_argument("--model", default="", metavar="NAME", help="lmms-eval's class (default: by the family)")
    parser.add_argument(
        "--model-args", nargs="+", default=[], metavar="NAME=VALUE", help="further arguments of that class"
    )
    parser.add_argument("--template", default="", help="chat template: vicuna_v1, or a file (default: the model's)")
    parser.add_argument("--companion", default="", metavar="CLIP", help="CLIP for methods that read relevance")
    parser.add_argument(
        "--options", default="", metavar="NAME=VALUE,...", help="arguments of generate, e.g. max_new_tokens=32"
    )
    parser.add_argument(
        "--include", nargs="+", default=[], metavar="FOLDER", help="folders of further tasks, as YAML files"
    )
    parser.add_argument("--results", type=Path, default=ROWS, metavar="FOLDER", help=f"store of rows {shown}")


def run(given: argparse.Namespace) -> int:
    """Ask the questions and print the metrics; returns 1 if a setting could not be asked."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise ImportError(
            "idsel harness needs lmms-eval, which has an environment of its own: run `make eval-env`, then "
            ".venv-eval/bin/idsel harness; or pip install 'idsel_core[eval]'"
        )
    settings = _settings(given)
    more = {"template": given.template, "companion": given.companion, **dict(_pair(text) for text in given.model_args)}
    tasks = [name for text in given.tasks for name in text.split(",") if name]
    from idsel_core.study.harness import run as harness
    from idsel_core.study.store.results import Results

    kind = harness.find_model(given.backbone, given.model)
    arguments = harness.arguments_of(given.backbone, given.device, **more)
    kind.checked(**arguments)
    manager = harness.check_tasks(tasks, given.include, kind.native_name)
    store = Results(given.results)
    store.check()
    loaded = harness.load_tasks(tasks, manager, chat=not kind.is_simple)
    found, refused = harness.evaluate(
        kind(**arguments), harness.called(given.backbone), loaded, settings, store, manager=manager,
        limit=given.limit, options=given.options,
    )  # fmt: skip
    if len(found):
        print(found.round(4).to_string(index=False))
    print(f"rows are in {store.root}")
    for what, why in refused.items():
        print(f"not asked: {what}: {why}")
    return 1 if refused else 0


def _settings(given: argparse.Namespace) -> list[Any]:
    from idsel_core.methods import METHODS
    from idsel_core.study.dataset import FULL
    from idsel_core.study.harness.setting import setting_from
    from idsel_core.study.knobs import build_method, knob_types

    for name in given.method:
        if name != FULL and name not in METHODS:
            build_method(name, {})
    knobs = dict(given.knob)
    if len(knobs) < len(given.knob) or "budget" in knobs:
        raise ValueError("each knob may be given once, and the budget is given by --budget")
    having = {name: {knob for knob in knobs if knob in knob_types(name)} for name in given.method if name != FULL}
    for knob in knobs:
        if not any(knob in known for known in having.values()):
            raise ValueError(f"none of the methods {', '.join(given.method)} has a knob {knob!r}")
    found = []
    for name in given.method:
        if name == FULL:
            found.append(setting_from())
            continue
        mine = {knob: text for knob, text in knobs.items() if knob in having[name]}
        found += [setting_from(name, number_or_share("--budget", text), knobs=mine) for text in given.budget]
    return list(dict.fromkeys(found))


def _pair(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--model-args takes NAME=VALUE, such as dtype=float16, not {text!r}")
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    return name, words.get(value.lower(), int(value) if value.isdecimal() else value)
