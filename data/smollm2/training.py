"""What a step of the training minimises, in each part: the projector alone, the first layers too, all by answers."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.backbone.features import EncodedScenes
from data.backbone.hints import NOUN_NAMES
from data.smollm2.batches import BACKGROUND, Asker, batches, mixed, sampled_patches, telling_batches
from data.smollm2.halves import halves
from data.smollm2.losses import hint_losses, patch_loss, strayed
from data.smollm2.student import Packed, Student, Words, told_by

PATCHES, QUICK = 1024, 20
"""Where the projector alone learns: patches a step, and times as many steps between lines of the log."""
ALONE, BESIDE = 6, 2
"""Times as many scenes as are asked about in a step, where the first layers alone learn, and beside questions."""
STAY = 20.0
"""What it weighs, where the projector alone learns, that its outputs stay near those that the layers know."""


class Training:
    """A student, what it learns from, and what each part of the training minimises.

    Parameters
    ----------
    student : Student
        Its projector is the one that it begins with.
    words : Words
        The tokenizer's ids.
    kinds : list[tuple[EncodedScenes, Asker]]
        Kinds of scenes and who asks about them; of two, the last in `args.rich` of the steps.
    tiles : list[EncodedScenes]
        Scenes of which only patches are told, if any.
    args : argparse.Namespace
        The options of the command line.
    nouns : list[str]
        The nouns of objects.
    """

    def __init__(
        self,
        student: Student,
        words: Words,
        kinds: list[tuple[EncodedScenes, Asker]],
        tiles: list[EncodedScenes],
        args: argparse.Namespace,
        nouns: list[str] = NOUN_NAMES,
    ) -> None:
        self.student, self.words, self.args, self.nouns = student, words, args, nouns
        self.scenes, self.tiles, self.kinds = [scenes for scenes, _ in kinds], tiles, kinds
        self.device = torch.device(args.device)
        self.prefix = words.prefix_tensor(self.device)
        self.begun = copy.deepcopy(student.projector).requires_grad_(False).to(self.device)

    def draw(self, seed: int) -> None:
        """Begin endless batches of a seed."""
        args, types = self.args, [*self.args.types, *self.args.more_of]
        asking = [
            batches(scenes, args.batch, args.questions, seed, types, self.nouns, asker) for scenes, asker in self.kinds
        ]
        self.asking = mixed(asking, args.rich, seed)
        self.telling, self.beside = (self.told(times * args.batch, seed) for times in (ALONE, BESIDE))
        self.sampled = sampled_patches([*self.scenes, *self.tiles], PATCHES, seed, self.nouns)

    def told(self, size: int, seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield endless batches of scenes and of tiles, and what lies under their patches."""
        return telling_batches(self.scenes, self.tiles, size, seed, self.nouns, self.args.rich)

    def part(self, share: float) -> str:
        """Return which part the training is in after a share of its time: "projector", "patches" or "answers"."""
        if share < self.args.projector_share:
            return "projector"
        return "patches" if share < self.args.projector_share + self.args.patch_share else "answers"

    def losses(self, part: str, span: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what a step of a part minimises, and the losses that it is the weighted sum of, by name."""
        given = {"projector": self.of_projector, "patches": self.of_patches, "answers": self.of_answers}[part](span)
        weights = {"strayed": STAY}
        if part == "answers":
            weights = dict.fromkeys(given, self.args.hints) | {"answer_loss": 1.0, "accuracy": 0.0}
            if self.args.asked_hints is not None:
                weights["asked_loss"] = self.args.asked_hints
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in given.items()]).sum(), given

    def of_projector(self, span: int) -> dict[str, Tensor]:
        """Return the loss of what the projector tells of sampled patches, and how far it strayed."""
        features, targets = next(self.sampled)
        projected = self.student.projected(features.to(self.device))
        before = self.begun(self.student.standard(features.to(self.device)))
        told = patch_loss(told_by(self.student.projector_heads, projected), targets, len(self.nouns))
        return {"projector_loss": told, "strayed": strayed(projected, before)}

    def of_patches(self, span: int) -> dict[str, Tensor]:
        """Return the loss of what the first layers tell of patches."""
        return {"patch_loss": self.told_loss(self.telling, span)}

    def of_answers(self, span: int) -> dict[str, Tensor]:
        """Return the losses of answers, of hints and, where there are tiles, of patches beside; and the accuracy."""
        features, asked, targets = next(self.asking)
        packed = Packed(asked, features.shape[1], self.words, self.device, span)
        with halves(self.device):
            out = self.student(features.to(self.device), packed)
        losses = {"answer_loss": packed.loss(out.logits), **hint_losses(out, packed, targets, len(self.nouns))}
        if self.tiles:
            losses["beside_loss"] = self.told_loss(self.beside, span)
        return losses | {"accuracy": packed.right(out.logits).float().mean()}

    def told_loss(self, source: Iterator[tuple[Tensor, list[Tensor]]], span: int) -> Tensor:
        """Return the loss of what the first layers tell of the next batch of scenes."""
        features, targets = next(source)
        with halves(self.device):
            told = self.student.under_patches(features.to(self.device), self.prefix, span)
        return patch_loss(told, targets, len(self.nouns))

    def fit_patch_heads(self, seed: int, scenes: int = 48, passes: int = 20) -> None:
        """Let new heads learn what the first layers tell already, before these layers learn from the heads."""
        source, states, under, middles = self.told(ALONE, seed), [], [], []
        generator = torch.Generator().manual_seed(seed)
        for _ in range(-(-scenes // ALONE)):
            features, (lies, middle) = next(source)
            chosen = (lies[..., 0] >= 0) | (torch.rand(lies.shape[:2], generator=generator) < BACKGROUND)
            with torch.no_grad(), halves(self.device):
                state = self.student.first_layers(features.to(self.device), self.prefix)
            states.append(state[chosen.to(self.device)].float())
            under.append(lies[chosen])
            middles.append(middle[chosen])
        every, targets = torch.cat(states), [torch.cat(under), torch.cat(middles)]
        stepper = torch.optim.AdamW(self.student.patch_heads.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(passes):
            for batch in torch.randperm(len(every), generator=generator).split(PATCHES):
                told = self.student.told_of_patches(every[batch.to(self.device)])
                loss = patch_loss(told, [target[batch] for target in targets], len(self.nouns))
                loss.backward()
                stepper.step()
                stepper.zero_grad(set_to_none=True)
        tqdm.write(f"the heads of patches begin at a loss of {loss.item():.2f}")


def optimizers(student: Student) -> list[torch.optim.Optimizer]:
    """Return AdamW for the heads of the hints, the projector and the low-rank additions, in this order."""
    heads = [p for name, p in student.named_parameters() if "_heads." in name]
    additions = [p for p in student.language_model.parameters() if p.requires_grad]
    groups = (heads, [*student.projector.parameters()], additions)
    return [torch.optim.AdamW(group, betas=(0.9, 0.98), weight_decay=0.0) for group in groups]


def learning_rate(share: float, peak: float) -> float:
    """Return the rate after a share of the time: warm up over 2 %, hold, fall linearly to zero over the last 40 %."""
    return peak * max(0.0, min(1.0, (share + 0.001) / 0.02, (1 - share) / 0.4))


def set_rates(steppers: list[torch.optim.Optimizer], share: float, peak: float, part: str) -> None:
    """Set the rates of heads, projector and additions; the projector learns at half the rate unless it is alone."""
    for stepper, rate in zip(steppers, (peak, peak if part == "projector" else 0.5 * peak, peak), strict=True):
        for group in stepper.param_groups:
            group["lr"] = learning_rate(share, rate)


def take_step(steppers: list[torch.optim.Optimizer]) -> None:
    """Change all parameters by their gradients, each optimizer's cut to a norm of 1."""
    for stepper in steppers:
        nn.utils.clip_grad_norm_(stepper.param_groups[0]["params"], 1.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
