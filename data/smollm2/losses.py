"""What training minimises beside the loss of answers."""

import torch.nn.functional as F
from torch import Tensor

from data.backbone.hints import NOUN_NAMES, gaze_loss, heads_loss, vote_loss
from data.smollm2.student import Outputs, Packed


def patch_loss(told: tuple[Tensor, Tensor], targets: list[Tensor], nouns: int = len(NOUN_NAMES)) -> Tensor:
    """Return the loss of what is told of patches and of middles of objects."""
    patches, middles = (target.to(told[0].device) for target in targets[:2])
    return heads_loss(told[0], patches, nouns) + 20 * F.binary_cross_entropy_with_logits(told[1].float(), middles)


def strayed(now: Tensor, before: Tensor) -> Tensor:
    """Return how far outputs are from those before, squared, as a share of how those before differ."""
    return F.mse_loss(now, before) / before.var(0).mean()


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
