"""Draw the stored parts of the data set and write them as parquet.

    python -m data.scenes.make --help

Questions are chosen so that, within each template of each family, every allowed answer occurs almost equally often.
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
from data.scenes.draw import PARTS, Scene, draw_scene, scene_rng

IMAGES = {"validation": 200, "test": 640, "hard": 120}
PER_IMAGE = 5
JPEG_QUALITY = 85


def draw_part(part: str, count: int) -> list[tuple[Scene, list[Question]]]:
    """Draw the scenes of a part with a large pool of candidate questions each."""
    pools = []
    for k in tqdm(range(count), desc=f"draw {part}", unit="scene"):
        rng = scene_rng(part, k)
        scene = draw_scene(rng, part, 7, 10, hard=True) if part == "hard" else draw_scene(rng, part)
        pools.append((scene, ask(rng, scene, 60, tries=6)))
    return pools


def choose(pools: list[tuple[Scene, list[Question]]], per_image: int) -> list[list[Question]]:
    """Choose `per_image` questions a scene: the rarest family first, then its rarest answer so far."""
    families: Counter[str] = Counter()
    templates: Counter[tuple[str, str]] = Counter()
    answers: Counter[tuple[str, str, str]] = Counter()
    subjects: Counter[tuple[str, str, str, str]] = Counter()
    chosen = []
    for _, pool in pools:
        by_family: dict[str, list[Question]] = defaultdict(list)
        for question in pool:
            by_family[question.family].append(question)
        picks = []
        for family in sorted(by_family, key=lambda f: families[f])[:per_image]:
            question = min(
                by_family[family],
                key=lambda q: (
                    answers[q.family, q.template, q.answer] * len(q.choices)
                    + subjects[q.family, q.template, q.subject, q.answer] * len(q.choices) * 4,
                    templates[q.family, q.template],
                ),
            )
            families[family] += 1
            templates[family, question.template] += 1
            answers[family, question.template, question.answer] += 1
            subjects[family, question.template, question.subject, question.answer] += 1
            picks.append(question)
        chosen.append(picks)
    return chosen


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_part(part: str, count: int, folder: Path) -> None:
    """Write `PART-images.parquet` (image bytes, objects with boxes) and `PART-questions.parquet`."""
    pools = draw_part(part, count)
    images = pd.DataFrame(
        {
            "image_id": [f"{part}-{k:04d}" for k in range(count)],
            "image": [encode_jpeg(scene.image) for scene, _ in pools],
            "objects": [[t.as_dict() for t in scene.things] for scene, _ in pools],
        }
    )
    rows = [
        {
            "question_id": f"{part}-{k:04d}-{j}",
            "image_id": f"{part}-{k:04d}",
            "family": q.family,
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
        temporary = folder / f".{part}-{name}.parquet"
        frame.to_parquet(temporary, index=False)
        temporary.replace(folder / f"{part}-{name}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/scenes"), help="folder of the parquet files")
    parser.add_argument("--parts", nargs="+", choices=PARTS[1:], default=list(IMAGES), help="parts to write")
    args = parser.parse_args()
    for part in args.parts:
        write_part(part, IMAGES[part], args.out)


if __name__ == "__main__":
    main()
