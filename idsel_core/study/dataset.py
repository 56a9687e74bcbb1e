"""Read the questions and images, or audio clips, of a split: embedded scenes, a user's own, or a task of lmms-eval."""

from __future__ import annotations

from pathlib import Path

from idsel_core.study.ends import BLIND, FULL, OTHER
from idsel_core.study.paths import DATA
from idsel_core.study.sources.scenes import has_scenes, read_split
from idsel_core.study.sources.split import Split

__all__ = ["BLIND", "FULL", "OTHER", "Split", "read_data", "read_split"]


def read_data(
    data: str | Path = DATA, split: str = "", limit: int = 0, *, metric: str = "", check_images: bool = True
) -> Split:
    """Read a split of a data set.

    Parameters
    ----------
    data : str or Path
        A folder in the form of the embedded scenes; a table of questions (.csv, .tsv, .jsonl, .parquet) or a folder
        that holds such tables and images, or audio clips (see `idsel_core.study.sources.own`); or ``lmms:TASK``, a
        task of lmms-eval.
    split : str
        Name of the split. In a folder it is the name of a table; of a table with a column `split` it is the rows with
        that value; any other table, and a task, is one split, whatever this says. May be "" where there is one.
    limit : int
        Take about this many questions, the first ones of each question type; 0 takes all.
    metric : str
        One of `idsel_core.study.metrics.METRICS`, for a table without a column `metric`.
    check_images : bool
        Whether to read the header of each image, so that one that cannot be used is refused now. Audio clips are
        always read.

    Raises
    ------
    FileNotFoundError
        If there is no such data set, split, image or clip.
    ValueError
        If content is not what it should be; names the row.
    ImportError
        If a task is asked for and lmms-eval is not installed.
    """
    if str(data).startswith("lmms:"):
        from idsel_core.study.sources.lmms import read_task

        return read_task(str(data).removeprefix("lmms:"), limit)
    folder = Path(data)
    if has_scenes(folder):
        return read_split(split, folder, limit)
    from idsel_core.study.sources.own import read_own

    return read_own(folder, split, limit, metric=metric, check_images=check_images)
