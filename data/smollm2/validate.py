"""What the model knows of held-out scenes while it is trained."""

from __future__ import annotations

import numpy as np
import torch

from data.backbone.features import EncodedScenes
from data.backbone.hints import NOUN_NAMES, head_sizes
from data.scenes.ask import ask
from data.scenes.draw import Scene
from data.smollm2.batches import Asker, told_targets
from data.smollm2.halves import halves
from data.smollm2.losses import patch_loss
from data.smollm2.student import Packed, Student, Words


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
