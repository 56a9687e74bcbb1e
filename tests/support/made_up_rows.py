"""Made-up rows of a result store."""

import numpy as np
import pandas as pd

QUESTION_TYPES = ("existence", "counting", "reading")


def made_up(settings: list[dict], accuracy: dict, questions: int = 90) -> pd.DataFrame:
    """Rows of a made-up ablation: each setting's accuracy is given by its place in `accuracy`."""
    rng = np.random.default_rng(0)
    luck = rng.random(questions)
    frames = [
        pd.DataFrame(
            {
                "question_id": [f"q{i}" for i in range(questions)],
                "question_type": [QUESTION_TYPES[i % 3] for i in range(questions)],
                "correct": (luck < accuracy[number]).astype(float),
                "chance": 0.25,
                "on_objects": accuracy[number],
                "positions": "compact",
                "tokens_kept": int(setting["budget"]),
                "tokens_average": setting["budget"],
                "convention": None,
                "knobs": None,
                "prefill_gflops": setting["budget"] / 100 + 0.1,
                "scoring_gflops": 0.0,
                **setting,
            }
        )
        for number, setting in enumerate(settings)
    ]
    return pd.concat(frames, ignore_index=True)
