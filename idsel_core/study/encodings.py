"""Encode the images of a data set once, and keep the encodings on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from idsel_core.backbones import Backbone, Encoded
from idsel_core.study.dataset import Split
from idsel_core.study.paths import ENCODINGS_DEPEND_ON, MODEL, PACKAGE, code_of
from idsel_core.study.store.files import write_atomically
from idsel_core.study.store.provenance import installed, sha256

_VIEWS = ("cls_attention", "received_attention", "image_key")


def image_pixels(processor: Any, pictures: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Return the pixel values of images, (I, 3, height, width)."""
    pixels: Tensor = processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    return pixels.to(device)


@torch.no_grad()
def encode_split(
    backbone: Backbone, processor: Any, split: Split, batch: int = 8, tower_depths: Sequence[float] | None = None
) -> Encoded:
    """Run the vision tower once on each image of a split, with a progress bar.

    Parameters
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor.
    split : Split
        Whose images to encode.
    batch : int
        Images at a time.
    tower_depths : sequence of float, optional
        Keep all views of the tower, also at these depths of it; by default the few small ones that most methods read.
    """
    pieces: list[dict[str, Tensor]] = []
    names = list(split.images.index)
    with tqdm(total=len(names), desc=f"encode {split.name}", unit="image", mininterval=2) as bar:
        for start in range(0, len(names), batch):
            pictures = [split.picture(name) for name in names[start : start + batch]]
            pixels = image_pixels(processor, pictures, backbone.model.device)
            encoded = backbone.encode(pixels, tower_depths=tower_depths or ())
            kept = None if tower_depths is not None else [view for view in _VIEWS if view in encoded.views]
            pieces.append(encoded.tensors(kept))
            bar.update(len(pictures))
    return Encoded.from_tensors({name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]})


def fingerprint(split: Split, folder: Path = MODEL, package: Path = PACKAGE) -> dict[str, str]:
    """Return what an encoding depends on: images, weights, the settings of model and processor, code and packages.

    Parameters
    ----------
    split : Split
        Whose images are encoded.
    folder : Path
        Of the model.
    package : Path
        The folder of idsel_core.

    Returns
    -------
    dict[str, str]
        Ready to be stored as metadata of a safetensors file.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    code = hashlib.sha256()
    for path in code_of(ENCODINGS_DEPEND_ON, package):
        code.update(f"{path.relative_to(package)} {sha256(path)}\n".encode())
    versions = installed()
    return {
        "images": split.images_hash,
        **{path.name: sha256(path) for path in files},
        "code": code.hexdigest(),
        **{name: str(versions[name]) for name in ("torch", "transformers", "pillow") if name in versions},
    }


def write_encoding(encoded: Encoded, path: Path, made_from: dict[str, str]) -> None:
    """Write an encoding with what it was made from, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(encoded.tensors(), metadata=made_from))


def read_encoding(path: Path, made_from: dict[str, str]) -> Encoded | None:
    """Read a stored encoding; None where there is none, a damaged one, or one made from anything else."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != made_from:
                return None
        return Encoded.from_tensors(load_file(path))
    except (OSError, SafetensorError):
        return None
