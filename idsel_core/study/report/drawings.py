"""The figures by name, each with the stored jobs that it is drawn from; none of them needs the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from idsel_core.hints import did_you_mean
from idsel_core.loading.random_models import architecture_file
from idsel_core.study.paths import MODEL
from idsel_core.study.report import (
    ablation_figures,
    across_backbones,
    comparison,
    comparison_figures,
    default_rule,
    efficiency,
    efficiency_figures,
    ranks,
    theme,
)
from idsel_core.study.report.default_figure import default_figure
from idsel_core.study.report.settings import own_positions
from idsel_core.study.store.provenance import origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

_GAMMA, _IMPORTANCE, _BUDGET, _COMPARISON = (
    "02_ablation_gamma", "03_ablation_importance", "04_ablation_budget", "06_comparison"
)  # fmt: skip
_DEFAULT, _EFFICIENCY, _SIZING, _PEERS = "14_default", "08_efficiency", "09_sizing", "peers-cpu"
_LOG: Final = MODEL.parent / "train.log.jsonl"
_SMOLLM2_LOG: Final = MODEL.parents[1] / "smollm2/train.log.jsonl"


@dataclass
class Stored:
    """What figures are drawn from.

    Parameters
    ----------
    rows, times : Path
        Folders of the two stores.
    resamples : int
        Bootstrap resamples of the intervals.
    shown_budgets : sequence of int
        Budgets of the detailed figures of the comparison; the last one is that of the question types.
    """

    rows: Path
    times: Path
    resamples: int = 2000
    shown_budgets: Sequence[int] = (64, 32, 16)

    @cached_property
    def results(self) -> Results:
        """The store of rows."""
        return Results(self.rows)

    @cached_property
    def clock(self) -> Times:
        """The store of times."""
        return Times(self.times)

    @cached_property
    def budget(self) -> pd.DataFrame:
        """Rows of the budget ablation, at the positions that are the default of the backbone's family."""
        return own_positions(self.results.frame(_BUDGET))

    @cached_property
    def stored(self) -> pd.DataFrame:
        """Rows of the comparison and of the controls, as stored."""
        return comparison.read_comparison(self.results)

    @cached_property
    def compared(self) -> pd.DataFrame:
        """The same, with methods of a final budget called so."""
        return comparison.by_title(self.stored)

    @cached_property
    def versus_each(self) -> pd.DataFrame:
        """ID-Selection against each other method."""
        return comparison.versus_each(self.compared, resamples=self.resamples)

    @cached_property
    def graded(self) -> pd.DataFrame:
        """Rows of the comparison by difficulty."""
        return comparison.by_difficulty(self.compared)

    @cached_property
    def timed(self) -> pd.DataFrame:
        """Times of the efficiency study."""
        return self.clock.frame(_EFFICIENCY)

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """Rows of the study across backbones."""
        return ranks.read_ranked(self.results)

    def jobs(self) -> set[str]:
        """Return the stored jobs, those of times behind "times/"."""
        return {*self.results.jobs(), *(f"times/{job}" for job in self.clock.jobs())}

    def origin_of(self, *jobs: str, **parameters: Any) -> dict[str, Any]:
        """Return what a figure of these jobs is drawn from, for its metadata."""
        timed = [job.removeprefix("times/") for job in jobs if job.startswith("times/")]
        note = self.results.origin(*(job for job in jobs if not job.startswith("times/")), **parameters)
        note["results"] |= self.clock.origin(*timed)["results"]
        return note


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn.

    Attributes
    ----------
    says : str
        What it shows, in a line.
    jobs : tuple of str
        The jobs that it is drawn from, those of times behind "times/".
    draw : callable
        Draws it from what is stored.
    origin : callable, optional
        What it is drawn from, for its metadata, where jobs do not say it.
    """

    says: str
    jobs: tuple[str, ...]
    draw: Callable[[Stored], Figure]
    origin: Callable[[Stored], dict[str, Any]] | None = None


def _training(_: Stored) -> Figure:
    return ablation_figures.training_figure(pd.read_json(_LOG, lines=True))


def _training_smollm2(_: Stored) -> Figure:
    log = pd.read_json(_SMOLLM2_LOG, lines=True)
    return ablation_figures.training_figure(log[log["part"] == "full scenes"], "the backbone on SmolLM2")


def _models(stored: Stored) -> Figure:
    asked = stored.clock.provenance(_EFFICIENCY)["parameters"]
    costs = efficiency.model_costs(asked["models"], asked["model_text"], "idselection")
    return efficiency_figures.models_figure(costs)


def _of_models(stored: Stored) -> dict[str, Any]:
    asked = stored.clock.provenance(_EFFICIENCY)["parameters"]
    return origin([architecture_file(name) for name in asked["models"]], **asked)


def _sizing(stored: Stored) -> Figure:
    prefills = efficiency.prefills(stored.clock.frame(_SIZING))
    return efficiency_figures.fit_figure(prefills, efficiency.fit_of(prefills))


def _default(stored: Stored) -> Figure:
    rows, layers = stored.results.frame(_DEFAULT), stored.results.provenance(_DEFAULT)["parameters"]["model_layers"]
    ranking = default_rule.rank_settings(
        rows, int(rows["tokens_before"].max()), layers, companions=True, resamples=stored.resamples
    )
    return default_figure(ranking, rows)


def _front(stored: Stored) -> Figure:
    return efficiency_figures.pareto_figure(
        efficiency.accuracy_against_time(stored.stored, stored.timed, stored.resamples)
    )


_BOTH: Final = (_COMPARISON, _BUDGET)
_TIMES: Final = (f"times/{_EFFICIENCY}",)

FIGURES: Final = {
    "training": Drawing(
        "accuracy of the embedded backbone while it was trained", (), _training, lambda _: origin([_LOG])
    ),
    "training_smollm2": Drawing(
        "accuracy of the backbone on SmolLM2 while it was trained on full scenes",
        (),
        _training_smollm2,
        lambda _: origin([_SMOLLM2_LOG]),
    ),
    "gamma": Drawing(
        "accuracy and kept tokens on objects against gamma, for both updates",
        (_GAMMA,),
        lambda one: ablation_figures.gamma_figure(one.results.frame(_GAMMA), one.resamples),
    ),
    "importance": Drawing(
        "accuracy of each importance score",
        (_IMPORTANCE,),
        lambda one: ablation_figures.importance_figure(one.results.frame(_IMPORTANCE), one.resamples),
    ),
    "budget": Drawing(
        "share of full performance against tokens kept, ID-Selection and its controls",
        (_BUDGET,),
        lambda one: ablation_figures.budget_figure(one.budget, one.resamples),
    ),
    "question_types": Drawing(
        "the same by question type",
        (_BUDGET,),
        lambda one: ablation_figures.question_types_figure(one.budget, one.resamples),
    ),
    "objects": Drawing(
        "share of the kept tokens that lie on objects",
        (_BUDGET,),
        lambda one: ablation_figures.objects_figure(one.budget, one.resamples),
    ),
    "backbones": Drawing(
        "the budget ablation on every backbone in the store",
        (_BUDGET,),
        lambda one: across_backbones.backbones_figure(across_backbones.read_backbones(one.results), one.resamples),
        lambda one: one.origin_of(
            *across_backbones.read_backbones(one.results)["job"].unique(), resamples=one.resamples
        ),
    ),
    "across_accuracy": Drawing(
        "accuracy of methods on two backbones, the same questions",
        (ranks.JOB,),
        lambda one: ranks.accuracy_figure(one.ranked, one.resamples),
    ),
    "across_ranks": Drawing(
        "ranks of methods on two backbones",
        (ranks.JOB,),
        lambda one: ranks.ranks_figure(one.ranked, one.resamples),
    ),
    "comparison": Drawing(
        "share of full performance, methods by budgets",
        _BOTH,
        lambda one: comparison_figures.ranking_figure(one.compared, one.resamples),
    ),
    "comparison_cost": Drawing(
        "share of full performance against FLOPs of the language model",
        _BOTH,
        lambda one: comparison_figures.cost_figure(one.compared, one.resamples),
    ),
    "comparison_versus_each": Drawing(
        "ID-Selection against each other method, question by question",
        _BOTH,
        lambda one: comparison_figures.versus_each_figure(one.versus_each, one.shown_budgets),
    ),
    "comparison_question_types": Drawing(
        "accuracy by question type, all methods",
        _BOTH,
        lambda one: comparison_figures.question_types_figure(one.compared, one.shown_budgets[-1], one.resamples),
    ),
    "comparison_difficulty": Drawing(
        "accuracy on easy and on hard questions, all methods",
        _BOTH,
        lambda one: comparison_figures.difficulty_figure(one.graded, one.shown_budgets, one.resamples),
    ),
    "default": Drawing("settings of ID-Selection ranked by the rule of docs/default.md", (_DEFAULT,), _default),
    "efficiency_phases": Drawing(
        "time of an answer by phase", _TIMES, lambda one: efficiency_figures.phases_figure(one.timed)
    ),
    "efficiency_scaling": Drawing(
        "FLOPs and time against tokens kept", _TIMES, lambda one: efficiency_figures.scaling_figure(one.timed)
    ),
    "efficiency_front": Drawing("share of full performance against measured time", (*_BOTH, *_TIMES), _front),
    "efficiency_models": Drawing("FLOPs of models of full size against tokens kept", _TIMES, _models, _of_models),
    "efficiency_selection": Drawing(
        "time of every method's selection alone",
        (f"times/{_PEERS}",),
        lambda one: efficiency_figures.selection_figure(one.clock.frame(_PEERS)),
    ),
    "sizing": Drawing("measured time of prefills against their FLOPs", (f"times/{_SIZING}",), _sizing),
}
"""Every figure that is drawn from the stores."""
_OPTIONAL: Final = {_BUDGET: _BOTH}
"""Jobs that a figure of these jobs can do without."""


def missing(name: str, stored: Stored) -> list[str]:
    """Return the jobs that a figure is drawn from and that are not stored."""
    drawing, there = drawing_of(name), stored.jobs()
    return [
        job for job in drawing.jobs if job not in there and not set(_OPTIONAL.get(job, ("-",))) <= set(drawing.jobs)
    ]


def drawing_of(name: str) -> Drawing:
    """Return how a figure is drawn.

    Raises
    ------
    ValueError
        If there is no such figure; names those that there are.
    """
    if name not in FIGURES:
        raise ValueError(f"there is no figure {name!r}{did_you_mean(name, FIGURES)}; there are {', '.join(FIGURES)}")
    return FIGURES[name]


def check(name: str, stored: Stored) -> None:
    """Refuse a figure that there is not, or whose jobs are not stored.

    Raises
    ------
    ValueError
        If there is no such figure; names those that there are.
    FileNotFoundError
        If jobs that it is drawn from are not stored; names them.
    """
    lacking = missing(name, stored)
    if lacking:
        where = {job: stored.times if job.startswith("times/") else stored.rows for job in lacking}
        named = " and ".join(f"{job.removeprefix('times/')} in {folder}" for job, folder in where.items())
        there = ", ".join(sorted(stored.jobs())) or "none"
        raise FileNotFoundError(
            f"figure {name} is drawn from {named}, which is not there; run `make figures` first, or what else writes "
            f"it (stored jobs: {there})"
        )


def draw(name: str, stored: Stored) -> tuple[Figure, dict[str, Any]]:
    """Draw a figure from the stores, and say what it is drawn from.

    Parameters
    ----------
    name : str
        A name of `FIGURES`.
    stored : Stored
        The stores.

    Returns
    -------
    Figure
        The figure.
    dict
        What it is drawn from, for `theme.save`.

    Raises
    ------
    ValueError, FileNotFoundError
        As for `check`.
    """
    check(name, stored)
    drawing = drawing_of(name)
    if drawing.origin is not None:
        note = drawing.origin(stored)
    else:
        jobs = [job for job in drawing.jobs if job in stored.jobs()]
        note = stored.origin_of(*jobs, resamples=stored.resamples, shown_budgets=list(stored.shown_budgets))
    return drawing.draw(stored), note


def save(name: str, stored: Stored, folder: Path | str) -> None:
    """Draw a figure from the stores and write it, as `theme.save`. Raises as `draw`."""
    figure, note = draw(name, stored)
    theme.save(figure, folder, name, note)
