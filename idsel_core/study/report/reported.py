"""Numbers that papers report, and measured rows beside them: within one protocol and one variant of a metric."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pandas as pd

from idsel_core.methods import METHODS
from idsel_core.study.paths import PROJECT
from idsel_core.study.report.agreement import f1_scores
from idsel_core.study.report.bootstrap import mean_scores, share_of_full
from idsel_core.study.report.settings import check_one_setting, own_positions

REPORTED: Final = PROJECT / "data/reported"
COLUMNS: Final = (
    "paper", "method", "backbone", "benchmark", "tokens", "value", "unit", "protocol", "metric", "source", "note",
)  # fmt: skip
UNITS: Final = {
    "percent": 100.0,
    "percent of full": 120.0,
    "points": 2800.0,
    "ms": float("inf"),
    "GFLOPs": float("inf"),
}
"""Units, and the most that a value may be; a pruned model may exceed the full one."""

_KEY: Final = ["backbone", "benchmark", "method", "tokens", "metric"]
_IDENTITY: Final = ["paper", "protocol", *_KEY]

_BACKBONES: Final = {
    "LLaVA-1.5-7B": r"llava-1\.5-7b",
    "LLaVA-1.5-13B": r"llava-1\.5-13b",
    "LLaVA-NeXT-7B": r"llava-v1\.6-vicuna-7b",
    "LLaVA-NeXT-13B": r"llava-v1\.6-vicuna-13b",
    "Qwen2.5-VL-3B": r"qwen2\.5-vl-3b",
    "Qwen2.5-VL-7B": r"qwen2\.5-vl-7b",
    "InternVL2.5-8B": r"internvl2[._]5-8b",
    "InternVL3-8B": r"internvl3-8b",
}
"""How papers call a backbone, and what its folder or hub id holds."""

_TASKS: Final = {
    "gqa": ("GQA", "accuracy"),
    "vqav2_val": ("VQAv2", "validation"),
    "vizwiz_vqa_val": ("VizWiz", "validation"),
    "scienceqa_img": ("ScienceQA-IMG", "accuracy"),
    "textvqa_val": ("TextVQA", "accuracy, no OCR tokens"),
    "idsel_textvqa_val_ocr": ("TextVQA", "accuracy, with OCR tokens"),
    "pope": ("POPE", "accuracy"),
    "ai2d": ("AI2D", "accuracy"),
    "chartqa": ("ChartQA", "relaxed accuracy"),
    "docvqa_val": ("DocVQA", "ANLS"),
    "mmstar": ("MMStar", "accuracy"),
    "ocrbench": ("OCRBench", "accuracy"),
    "mme": ("MME", "accuracy of single questions"),
    "mmbench_en_dev_static": ("MMBench", "accuracy of single rotations"),
    "idsel_mmbench_cn_dev_static": ("MMBench-CN", "accuracy of single rotations"),
}
"""How papers call a task of lmms-eval, and which variant of the metric its rows hold.

Of MME papers print points over pairs of questions, of MMBench they count a question when all rotations of its options
are right, so the means of rows are other variants.
"""


def read_reported(folder: Path = REPORTED) -> pd.DataFrame:
    """Read all reported numbers and check them.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If a column is missing, a value is out of range or no number, a source is not given, or a number is there twice.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"no reported numbers in {folder}")
    tables = [pd.read_csv(path, keep_default_na=False).assign(file=path.name) for path in paths]
    table = check_reported(pd.concat(tables, ignore_index=True)).drop(columns="file")
    # A method may have been added here after its row.
    return table.assign(method=table["method"].replace({each.label: name for name, each in METHODS.items()}))


def check_reported(table: pd.DataFrame) -> pd.DataFrame:
    """Return reported numbers as they are, or refuse them; see `read_reported`."""
    names = [name for name in table if name != "file"]
    if names != list(COLUMNS):
        raise ValueError(f"reported numbers have the columns {', '.join(COLUMNS)}, not {', '.join(map(str, names))}")
    for row in table.to_dict("records"):
        where = f"{row.get('file', 'row')}: {row['paper']}, {row['method']} at {row['tokens']} on {row['benchmark']}"
        empty = [name for name in COLUMNS if name != "note" and not str(row[name]).strip()]
        if empty:
            raise ValueError(f"{where}: {empty[0]} is empty")
        if row["unit"] not in UNITS:
            raise ValueError(f"{where}: unit {row['unit']!r} is none of {', '.join(UNITS)}")
        for name in ("value", "tokens"):
            if isinstance(row[name], str):
                raise ValueError(f"{where}: {name} {row[name]!r} is no number")
        if not 0 <= row["value"] <= UNITS[row["unit"]]:
            raise ValueError(f"{where}: {row['value']} {row['unit']} is not from 0 to {UNITS[row['unit']]:g}")
        whole = float(row["tokens"]).is_integer()
        if not (0 <= row["tokens"] <= 1 or (whole and row["tokens"] <= 100_000)):
            raise ValueError(f"{where}: tokens must be a number of tokens, or a share up to 1")
    twice = table[table.duplicated(_IDENTITY)]
    if len(twice):
        raise ValueError(f"a number is there twice: {dict(twice.iloc[0][_IDENTITY])}")
    return table


def measured_scores(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return what stored rows say, in the words of reported numbers: one row a backbone, data set, method and budget.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of any backbones and data sets; may be empty. Those of methods whose budget is what is left
        at last, of second questions in a conversation, and those with other positions than the default of a
        backbone's family (`own_positions`) are left out.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        backbone, benchmark, method, tokens, metric, measured, low, high (percent), questions. A backbone or data set
        that no paper knows keeps its own name. POPE comes twice, as accuracy and as F1.

    Raises
    ------
    ValueError
        If a method has several settings at one budget, see `check_one_setting`.
    """
    found = []
    if len(rows):
        rows = _of_one_setting(rows)
    # Each setting by itself, as some may have been asked fewer questions than others.
    by = ["method", "budget"]
    for key, part in rows.groupby(["backbone", "dataset", "split", *by]) if len(rows) else ():
        backbone, dataset = map(str, key[:2])
        benchmark, metric = _TASKS.get(dataset, (dataset, "accuracy"))
        scores = {metric: mean_scores(part, by, resamples=resamples)}
        if benchmark == "POPE":
            scores["F1"] = f1_scores(part, by, resamples=resamples).rename(columns={"f1": "mean"})
        for variant, table in scores.items():
            table = table.rename(columns={"budget": "tokens", "mean": "measured"})
            table = table.assign(backbone=called(backbone), benchmark=benchmark, metric=variant)
            table[["measured", "low", "high"]] *= 100
            found.append(table)
    columns = [*_KEY, "measured", "low", "high", "questions"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def mean_over_benchmarks(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return the mean over benchmarks of score / score with all tokens, for each method and budget.

    A mean over other benchmarks is another number, and papers choose different ones: only those count here that all
    methods and budgets were asked, and the table names them. MME and MMBench count by single questions.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone, those of all tokens among them; left out are the same as by
        `measured_scores`.
    resamples : int
        Bootstrap resamples of the intervals; questions are drawn within each benchmark.

    Returns
    -------
    DataFrame
        method, tokens, share, low, high (percent), benchmarks (their names, separated by commas), left out (names of
        those that some were not asked).

    Raises
    ------
    ValueError
        If there are several backbones or none, no benchmark was asked with all settings, a method has several settings
        at one budget, or as for `share_of_full`.
    """
    rows = _of_one_setting(rows)
    if rows["backbone"].nunique() != 1:
        raise ValueError(
            f"a mean is of one backbone; there are {', '.join(sorted(rows['backbone'].unique())) or 'none'}"
        )
    by, whole = ["method", "budget"], rows["method"] == "full"
    # All tokens are one setting, whatever their number on a benchmark.
    rows = rows.assign(budget=rows["budget"].where(~whole, rows.loc[whole, "budget"].max()))
    several = rows.groupby("dataset")["split"].transform("nunique") > 1
    names = rows["dataset"].where(~several, rows["dataset"] + " " + rows["split"])
    asked = {str(name): set(map(tuple, part[by].drop_duplicates().to_numpy())) for name, part in rows.groupby(names)}
    every = set.union(*asked.values())
    common = [name for name, settings in asked.items() if settings == every]
    if not common:
        raise ValueError(f"no benchmark was asked with all methods and budgets; there are {', '.join(asked)}")
    # Questions are drawn within each benchmark, whatever types of questions it has.
    chosen = rows.assign(question_type=names)[names.isin(common)]
    table = share_of_full(chosen, by, resamples=resamples).rename(columns={"budget": "tokens"})
    table[["share", "low", "high"]] *= 100
    left_out = ", ".join(name for name in asked if name not in common)
    table = table.assign(**{"benchmarks": ", ".join(common), "left out": left_out})
    return table[["method", "tokens", "share", "low", "high", "benchmarks", "left out"]]


def _of_one_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can stand beside reported numbers, each method in one setting."""
    rows = rows[(rows["convention"].fillna("average") != "final") & rows["conversation"].isna()]
    rows = own_positions(rows)
    # The number of all tokens may differ from image to image.
    most = rows.groupby(["backbone", "dataset", "split", "method"])["budget"].transform("max")
    rows = rows.assign(budget=rows["budget"].where(rows["method"] != "full", most))
    check_one_setting(rows)
    return rows


def called(backbone: str) -> str:
    """Return how papers call a backbone; one that no paper here has keeps its name."""
    matches = [name for name, pattern in _BACKBONES.items() if re.search(pattern, backbone.lower())]
    return matches[0] if matches else backbone


def set_beside(reported: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Set measured scores beside the reported numbers of one protocol.

    Only the same backbone, benchmark, method, tokens and variant of the metric meet; all tokens meet whatever their
    number, as it differs with the size of images.

    Parameters
    ----------
    reported : DataFrame
        Of `read_reported`, of one protocol.
    measured : DataFrame
        Of `measured_scores`.

    Returns
    -------
    DataFrame
        The reported rows, with measured, low, high, questions (null where nothing was measured) and difference
        (measured less reported).

    Raises
    ------
    ValueError
        If the reported numbers are of several protocols.
    """
    protocols = sorted(reported["protocol"].unique())
    if len(protocols) != 1:
        raise ValueError(f"numbers of different protocols must not be mixed; choose one of {', '.join(protocols)}")
    left, right = (table.assign(place=_place(table)) for table in (reported, measured))
    key = ["place" if name == "tokens" else name for name in _KEY]
    table = left.merge(right.drop(columns="tokens"), on=key, how="left").drop(columns="place")
    return table.assign(difference=pd.to_numeric(table["measured"]) - table["value"])


def not_comparable(reported: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return measured scores and reported numbers that differ in nothing but the variant of the metric.

    They must not be compared, and `set_beside` leaves them apart; this is the list of them.

    Parameters
    ----------
    reported, measured : DataFrame
        As for `set_beside`, but of any protocols.

    Returns
    -------
    DataFrame
        backbone, benchmark, method, tokens, protocol, measured as, measured, reported as, reported.
    """
    left, right = (table.assign(place=_place(table)) for table in (reported, measured))
    key = ["backbone", "benchmark", "method", "place"]
    both = left.merge(right.drop(columns="tokens"), on=key, suffixes=(" reported", ""))
    names = {"metric": "measured as", "metric reported": "reported as", "value": "reported"}
    met = both["metric"] == both["metric reported"]
    comparable = met.groupby([both[name] for name in (*key, "protocol")]).transform("any") if len(both) else met
    shown = ["backbone", "benchmark", "method", "tokens", "protocol", *names.values()]
    return both[~comparable].rename(columns=names)[[*shown, "measured"]].reset_index(drop=True)


def _place(table: pd.DataFrame) -> pd.Series:
    return pd.to_numeric(table["tokens"]).where(table["method"] != "full", -1.0).astype(float)
