"""Print the accuracy of one method at one budget, by question type.

For example:

    idsel evaluate --method idselection --budget 64 --knob gamma 5
    idsel evaluate --method fastv --budget 0.25 --split test --limit 280
"""

from __future__ import annotations

import argparse

from idsel_core.study.commands._arguments import add_study_arguments, natural, number_or_share, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--method",
        default="idselection",
        metavar="NAME",
        help="a method, full for all visual tokens, or no-image; an unknown name lists all (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        default="64",
        metavar="K",
        help="visual tokens to keep, or a share such as 0.1 (default: %(default)s)",
    )
    parser.add_argument(
        "--knob",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a setting of the method, e.g. gamma 5, faithful true, layers [2,0.5]; may be given several times",
    )
    parser.add_argument(
        "--limit",
        type=natural,
        default=0,
        metavar="N",
        help="ask N questions, as many of each question type, rounded up, its first ones; 0 asks all (default: 0)",
    )
    parser.add_argument(
        "--batch", type=positive, default=50, metavar="N", help="questions at a time (default: %(default)s)"
    )
    add_study_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Ask the questions and print the accuracy."""
    from idsel_core.hints import did_you_mean
    from idsel_core.methods import METHODS, get_method
    from idsel_core.study.backbone_folders import check_evaluable, check_reads
    from idsel_core.study.dataset import BLIND, FULL, read_data
    from idsel_core.study.devices import check_device
    from idsel_core.study.knobs import parse_knob

    ends = (FULL, BLIND)
    if given.method in ends:
        if given.knob:
            raise ValueError(f"{given.method} has no knobs, so --knob {given.knob[0][0]} means nothing")
        method = given.method
    elif given.method in METHODS:
        settings = {name: parse_knob(given.method, name, text) for name, text in given.knob if name != "budget"}
        if len(settings) < len(given.knob):
            raise ValueError("each knob may be given once, and the budget is given by --budget")
        method = get_method(given.method, budget=number_or_share("--budget", given.budget), **settings)
    else:
        known = [*ends, *METHODS]
        hint = did_you_mean(given.method, known)
        raise ValueError(f"unknown method {given.method!r}{hint}; known: {', '.join(known)}")
    check_device(given.device)
    check_evaluable(given.backbone, given.revision)
    check_reads(given.backbone, read_data(given.data, given.split, given.limit), given.revision)

    from idsel_core.study.open_study import open_study
    from idsel_core.study.report.tables import accuracy

    study = open_study(
        given.split,
        limit=given.limit,
        backbone=given.backbone,
        data=given.data,
        device=given.device,
        dtype=given.dtype,
        quantisation=given.quantisation,
        attention=given.attention,
        revision=given.revision,
        tower_depths=getattr(method, "tower_depths", ()) or None,
    )
    rows = study.run([method], given.batch)
    asked = study.split.questions["question_type"].value_counts(sort=False)
    taken = f", of {given.limit} wanted: " + ", ".join(f"{count} {kind}" for kind, count in asked.items())
    print(f"{asked.sum()} questions of split {study.split.name}{taken if given.limit else ''}")
    if (rows["budget"] > rows["tokens_before"]).any():
        print(f"the budget of {method.budget} is above the tokens of some images, which are left whole")
    print(accuracy(rows).round(3).to_string())
    return 0
