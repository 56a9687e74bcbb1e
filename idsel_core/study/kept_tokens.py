"""What the kept tokens of each question are like: how many directions their features span, how many lie on bars."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from idsel_core.methods import Method
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.study.asked_methods import tower_depths
from idsel_core.study.bars import on_bars
from idsel_core.study.evaluate import Study
from idsel_core.study.objects import Objects
from idsel_core.study.question_inputs import QuestionReader


def effective_rank(features: Tensor) -> Tensor:
    """Return the exponential of the entropy of the singular values' shares in their sum, float64 (B,).

    It is 1 where all rows of a matrix are multiples of one, and the number of rows where they are orthogonal and as
    long.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.

    Parameters
    ----------
    features : Tensor
        (B, K, D), any float dtype.
    """
    values = torch.linalg.svdvals(features.double())  # (B, min(K, D))
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


@torch.no_grad()
def kept_tokens(study: Study, methods: Sequence[Method], bars: float = 0.0, batch: int = 50) -> pd.DataFrame:
    """Return, for each question and method, the effective rank of the kept features and the share of kept bars.

    Parameters
    ----------
    study : Study
        Model and questions, of one image each.
    methods : sequence of Method
        Methods before the language model that merge nothing.
    bars : float
        Share of an image's height that is bars; see `with_bars`.
    batch : int
        Questions at a time.

    Returns
    -------
    DataFrame
        question_type, question_id, method, budget, rank, on_bars.

    Raises
    ------
    ValueError
        If a method merges tokens, or keeps different numbers of them.
    """
    reader = QuestionReader(study.backbone, study.writer, study.split, study.encoded, Objects(study.split))
    questions, depths, found = study.split.questions, tower_depths(methods), []
    for start in range(0, len(questions), batch):
        asked = questions.iloc[start : start + batch]
        tokens = reader.read(asked, depths).tokens
        for method in methods:
            kept = select_tokens(method, tokens)
            if kept.features is not None or bool((kept.indices < 0).any()):
                raise ValueError(f"{method.name!r} merges tokens or keeps different numbers of them")
            chosen = tokens.features.gather(1, kept.indices[..., None].expand(-1, -1, tokens.features.shape[2]))
            barred = on_bars(tokens.grid, bars).gather(1, kept.indices).double().mean(1)
            found.append(
                asked[["question_type", "question_id"]].assign(
                    method=method.name,
                    budget=float(method.budget),
                    rank=effective_rank(chosen).numpy(),
                    on_bars=barred.numpy(),
                )
            )
    return pd.concat(found, ignore_index=True)
