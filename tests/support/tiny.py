"""Tiny random models and prompts: 24 x 24 pixels, 6 x 6 = 36 visual tokens, no files."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

IMAGE, PAD, BOS, VOCABULARY, TOKENS = 90, 0, 1, 100, 36
TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 24, "patch_size": 4}
TOWERS = {
    "clip": lambda: CLIPVisionConfig(**TOWER, intermediate_size=64),
    "dinov2": lambda: Dinov2Config(**TOWER, mlp_ratio=2),
    "siglip": lambda: SiglipVisionConfig(**TOWER, intermediate_size=64),
}


def build(
    tower: str = "clip", attention: str = "sdpa", layers: int = 3, width: int = 32, **knobs
) -> LlavaForConditionalGeneration:
    """Return a LLaVA whose weights are large enough for images and words to matter."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 16,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    if tower == "siglip":
        knobs.setdefault("vision_feature_select_strategy", "full")
    config = LlavaConfig(vision_config=TOWERS[tower](), text_config=text, image_token_id=IMAGE, **knobs)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "class_embedding" in name:
                parameter.normal_(0, 0.25)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    model.set_attn_implementation(attention)
    return model


def companion() -> VisionTextDualEncoderModel:
    torch.manual_seed(1)
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(TOWERS["clip"](), text, projection_dim=8)
    return VisionTextDualEncoderModel(config).eval()


def prompts(layout: tuple[int, ...] = (1, 2), side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """Return a padded batch of prompts of different lengths; `layout` tells how many images each holds."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(3, 80, (count,), generator=generator).tolist()

    rows = []
    for row, images in enumerate(layout):
        ids = [BOS, *words(2 + row)]
        for _ in range(images):
            ids += [IMAGE] * TOKENS + words(3)
        rows.append(ids + words(4))
    width = max(map(len, rows))
    padded = [[PAD] * (width - len(r)) + r if side == "left" else r + [PAD] * (width - len(r)) for r in rows]
    inputs = {"input_ids": torch.tensor(padded)}
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    if sum(layout):
        inputs["pixel_values"] = torch.randn(sum(layout), 3, 24, 24, generator=generator)
    return inputs


def alone(inputs: dict[str, Tensor], layout: tuple[int, ...], row: int) -> dict[str, Tensor]:
    """Return one prompt of a batch, without padding."""
    real = inputs["attention_mask"][row].bool()
    first = sum(layout[:row])
    single = {name: inputs[name][row][real][None] for name in ("input_ids", "attention_mask")}
    if layout[row]:
        single["pixel_values"] = inputs["pixel_values"][first : first + layout[row]]
    return single


class TinyLlava:
    """LLaVA-1.5 by the names that the other families have."""

    build = staticmethod(build)

    def prompts(self, layout, side="left", seed=0):
        return prompts(tuple(map(len, layout)), side, seed)

    def features(self, model, inputs):
        return {"image": list(model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output)}

    def alone(self, layout, row):
        return alone(self.prompts(layout), tuple(map(len, layout)), row)
