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
from data.scenes.ask_rich import WORDINGS, RichQuestion, ask_rich
from data.scenes.draw import Scene, draw_scene, scene_rng
from data.scenes.rich import draw_rich_scene, rich_rng

IMAGES = {"validation": 200, "test": 640, "hard": 120, "rich-validation": 70, "rich": 200}
RICH = {"rich-validation": "validation", "rich": "test"}
"""Splits of rich scenes, and the split whose nouns, wordings, digits and photographs they use."""
PER_IMAGE = 5
RICH_PER_IMAGE = 3
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


def draw_rich_split(name: str, count: int) -> list[tuple[Scene, list[RichQuestion]]]:
    """Draw the scenes of a split of rich scenes with a large pool of candidate questions each."""
    pools = []
    for k in tqdm(range(count), desc=f"draw {name}", unit="scene"):
        rng = rich_rng(RICH[name], k)
        scene = draw_rich_scene(rng, RICH[name])
        pools.append((scene, ask_rich(rng, scene, 60, tries=6, split=RICH[name])))
    return pools


def choose_rich(pools: list[tuple[Scene, list[RichQuestion]]], per_image: int) -> list[list[RichQuestion]]:
    """Choose `per_image` questions a scene, of different types.

    Question types are evened out first. Then answers within a template, templates within a type, and new nouns and new
    wordings within a template are, each by how much more of the questions so far have them than their fair share.
    """
    counts: Counter[tuple[str | bool, ...]] = Counter()

    def keys(q: RichQuestion) -> list[tuple[tuple[str | bool, ...], tuple[str | bool, ...], float, float]]:
        template = ("template", q.question_type, q.template)
        share = 1 / len(q.choices)
        subject = ("subject", *template, q.subject)
        return [
            # what is counted, within what, its fair share, its weight
            (("answer", *template, q.answer), template, share, 4.0),
            (("subject's answer", *subject, q.answer), subject, share, 2.0),
            (template, ("type", q.question_type), 1 / templates[q.question_type], 3.0),
            (("noun", *template, q.new_noun), template, 0.5, 1.0),
            (("wording", *template, q.new_wording), template, 0.5, 1.0),
            (("both", *template, q.new_noun, q.new_wording), template, 0.25, 0.5),
            (("noun's answer", *template, q.new_noun, q.answer), ("noun", *template, q.new_noun), share, 2.0),
        ]

    def count(q: RichQuestion, step: int) -> None:
        subject = ("subject", "template", q.question_type, q.template, q.subject)
        for what in (("type", q.question_type), subject, *(what for what, *_ in keys(q))):
            counts[what] += step

    def fairest(questions: list[RichQuestion]) -> RichQuestion:
        return min(
            questions, key=lambda q: sum(w * (counts[what] - share * counts[of]) for what, of, share, w in keys(q))
        )

    templates = Counter(question_type for question_type, _ in WORDINGS)
    chosen = []
    for _, pool in pools:
        types = sorted(dict.fromkeys(q.question_type for q in pool), key=lambda name: counts["type", name])[:per_image]
        chosen.append([])
        for name in types:
            chosen[-1].append(fairest([q for q in pool if q.question_type == name]))
            count(chosen[-1][-1], 1)
    # The last scenes cannot even out all that the first ones left, so that each is chosen again.
    for picks, (_, pool) in zip(chosen * 2, pools * 2, strict=True):
        for k, old in enumerate(picks):
            count(old, -1)
            picks[k] = fairest([q for q in pool if q.question_type == old.question_type])
            count(picks[k], 1)
    return chosen


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_split(split: str, count: int, folder: Path) -> None:
    """Write `PART-images.parquet` (image bytes, objects with boxes) and `PART-questions.parquet`."""
    pools: list[tuple[Scene, list[Question]]]
    chosen: list[list[Question]]
    if split in RICH:
        rich = draw_rich_split(split, count)
        pools, chosen = [*rich], [*choose_rich(rich, RICH_PER_IMAGE)]
    else:
        pools = draw_split(split, count)
        chosen = choose(pools, PER_IMAGE)
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
        | ({"new_noun": q.new_noun, "new_wording": q.new_wording} if isinstance(q, RichQuestion) else {})
        for k, questions in enumerate(chosen)
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
    parser.add_argument("--splits", nargs="+", choices=list(IMAGES), default=list(IMAGES), help="splits to write")
    args = parser.parse_args()
    for split in args.splits:
        write_split(split, IMAGES[split], args.out)


if __name__ == "__main__":
    main()
