"""Draw the stored splits of the data set and write them as parquet.

    python -m data.scenes.make --help

Questions are chosen so that, within each template of each question type, every allowed answer occurs almost equally
often.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from data.scenes.ask import Question, ask
from data.scenes.draw import SPLITS, Scene, draw_scene, scene_rng

IMAGES = {"validation": 200, "test": 640, "hard": 120}
PER_IMAGE = 5
JPEG_QUALITY = 85


def draw_split(split: str, count: int) -> list[tuple[Scene, list[Question]]]:
    """Draw the scenes of a split with a large pool of candidate questions each."""
    pools = []
    for k in tqdm(range(count), desc=f"draw {split}", unit="scene"):
        rng = scene_rng(split, k)
        scene = draw_scene(rng, split, 7, 10, hard=True) if split == "hard" else draw_scene(rng, split)
        pools.append((scene, ask(rng, scene, 60, tries=6)))
    return pools


def choose(pools: list[tuple[Scene, list[Question]]], per_image: int) -> list[list[Question]]:
    """Choose `per_image` questions a scene: the rarest question type first, then its rarest answer so far."""
    question_types: Counter[str] = Counter()
    templates: Counter[tuple[str, str]] = Counter()
    answers: Counter[tuple[str, str, str]] = Counter()
    subjects: Counter[tuple[str, str, str, str]] = Counter()
    chosen = []
    for _, pool in pools:
        by_question_type: dict[str, list[Question]] = defaultdict(list)
        for question in pool:
            by_question_type[question.question_type].append(question)
        picks = []
        for question_type in sorted(by_question_type, key=lambda f: question_types[f])[:per_image]:
            question = min(
                by_question_type[question_type],
                key=lambda q: (
                    answers[q.question_type, q.template, q.answer] * len(q.choices)
                    + subjects[q.question_type, q.template, q.subject, q.answer] * len(q.choices) * 4,
                    templates[q.question_type, q.template],
                ),
            )
            question_types[question_type] += 1
            templates[question_type, question.template] += 1
            answers[question_type, question.template, question.answer] += 1
            subjects[question_type, question.template, question.subject, question.answer] += 1
            picks.append(question)
        chosen.append(picks)
    return chosen


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_split(split: str, count: int, folder: Path) -> None:
    """Write `PART-images.parquet` (image bytes, objects with boxes) and `PART-questions.parquet`."""
    pools = draw_split(split, count)
    images = pd.DataFrame(
        {
            "image_id": [f"{split}-{k:04d}" for k in range(count)],
            "image": [encode_jpeg(scene.image) for scene, _ in pools],
            "objects": [[t.as_dict() for t in scene.things] for scene, _ in pools],
        }
    )
    rows = [
        {
            "question_id": f"{split}-{k:04d}-{j}",
            "image_id": f"{split}-{k:04d}",
            "question_type": q.question_type,
            "template": q.template,
            "question": q.text,
            "choices": list(q.choices),
            "answer": q.answer,
            "about": list(q.about),
        }
        for k, questions in enumerate(choose(pools, PER_IMAGE))
        for j, q in enumerate(questions)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("images", images), ("questions", pd.DataFrame(rows))):
        temporary = folder / f".{split}-{name}.parquet"
        frame.to_parquet(temporary, index=False)
        temporary.replace(folder / f"{split}-{name}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/scenes"), help="folder of the parquet files")
    parser.add_argument("--splits", nargs="+", choices=SPLITS[1:], default=list(IMAGES), help="splits to write")
    args = parser.parse_args()
    for split in args.splits:
        write_split(split, IMAGES[split], args.out)


if __name__ == "__main__":
    main()
