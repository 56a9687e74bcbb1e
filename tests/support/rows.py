"""Rows as an evaluation stores them, for tests of what reads them; imports little, as jobs of tests import it."""

import numpy as np
import pandas as pd


def make_rows(questions: int = 12, budgets: tuple[float, ...] = (64, 16), method: str = "idselection") -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "backbone": "tiny",
                    "dataset": "scenes",
                    "split": "validation",
                    "question_id": [f"q{i:04d}" for i in range(questions)],
                    "image_id": [f"i{i // 4:04d}" for i in range(questions)],
                    "question_type": ["count", "read"] * (questions // 2),
                    "method": method,
                    "importance": "unified",
                    "normalise": "minmax",
                    "features": "projector",
                    "update": None,
                    "instruction": "words@0",
                    "gamma": 20.0,
                    "positions": "compact",
                    "budget": budget,
                    "tokens_before": 576,
                    "convention": None,
                    "knobs": None,
                    "tokens_kept": int(budget),
                    "tokens_average": budget,
                    "prefill_gflops": 1.5,
                    "scoring_gflops": 0.0,
                    "conversation": None,
                    "on_objects": draw.random(questions),
                    "seed": 0,
                    "prediction": "two",
                    "answer": draw.choice(["two", "red"], questions),
                    "correct": draw.integers(0, 2, questions).astype(bool),
                    "chance": 0.25,
                }
            )
            for budget in budgets
        ],
        ignore_index=True,
    )


def make_times() -> pd.DataFrame:
    words = ("backbone", "method", "phase", "attention", "device", "dtype", "torch", "transformers")
    counts = ("runs", "warmup", "batch", "images", "tokens_before", "kept_tokens", "prompt_tokens", "new_tokens")
    times = {"median_ms": 2.0, "low_ms": 1.5, "high_ms": 3.0, "average_tokens": 64.0}
    return pd.DataFrame([dict.fromkeys(words, "made up") | dict.fromkeys(counts, 1) | times | {"threads": 2}])
