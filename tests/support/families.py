"""Tiny random models and prompts of every family but LLaVA-1.5, without files.

A prompt is laid out as a tuple of its images, each named by the number of its size; negative numbers are videos.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

IMAGE, VIDEO, START, END, PAD, BOS, VOCABULARY = 90, 91, 92, 93, 0, 1, 100
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
WIDE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
"""For `TEXT` in models that are quantised to 4 bits, which blocks of 64 entries take."""
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
TOKEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


@dataclass(frozen=True)
class Family:
    """What tests need to know of a model family.

    A subclass says how the model is built, what pixels an image is, and, in the slowest and plainest way, what the
    language model reads.
    """

    name: str
    counts: dict[int, int]
    """Tokens of each size."""
    axes: int = 1
    has_cls: bool = False
    causal: bool = True
    """Whether no token attends to later ones, so that a prompt may be read in pieces."""
    refused: dict[str, str] = field(default_factory=dict)
    """Methods that cannot run, and why."""
    mixes_in_search: bool = False
    """Whether transformers itself gives beams of one prompt each other's images, where it has several."""

    def config(self) -> Any:
        raise NotImplementedError

    def model_class(self) -> Any:
        raise NotImplementedError

    def pixels(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        raise NotImplementedError

    def marks(self, size: int) -> list[int]:
        """Return what stands in a prompt for an image."""
        return [START, *[IMAGE if size >= 0 else VIDEO] * self.counts[size], END]

    def collate(self, images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = {name for image in images for name in image}
        return {name: torch.cat([image[name] for image in images if name in image]) for name in names}

    def gather(self, prompts: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Return the pixels of prompts that each have some images."""
        return self.collate([image for images in prompts for image in images])

    def marked(self, ids: Tensor) -> dict[str, Tensor]:
        """Return further inputs that follow from the prompts."""
        return {}

    def features(self, model: Any, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Return what the language model reads of images and of videos, one tensor each."""
        output = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
        return {"image": list(output.pooler_output)}

    def decoder(self, model: Any) -> Any:
        """Return what reads embeddings."""
        return model.model.language_model

    def positions(self, model: Any, inputs: dict[str, Tensor], keep: Tensor) -> tuple[Tensor, int]:
        """Return positions of what is kept of one prompt, and the position of the next token."""
        count = int(keep.sum())
        return torch.arange(count)[None], count

    def beside(self, model: Any, inputs: dict[str, Tensor], keep: Tensor) -> dict[str, Any]:
        """Return what else the language model reads with the kept columns of one prompt."""
        return {}

    def build(self, attention: str = "sdpa", **knobs: Any) -> Any:
        """Return a model whose weights are large enough for images and words to matter."""
        torch.manual_seed(0)
        model = self.model_class()(self.config(**knobs)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 or "class_embedding" in name or "newline" in name:
                    parameter.normal_(0, 0.25)
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
        model.set_attn_implementation(attention)
        return model

    def prompts(self, layout: tuple[tuple[int, ...], ...], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """Return a padded batch of prompts of different lengths."""
        generator = torch.Generator().manual_seed(seed)

        def words(count: int) -> list[int]:
            return torch.randint(3, 80, (count,), generator=generator).tolist()

        rows = []
        for row, sizes in enumerate(layout):
            ids = [BOS, *words(2 + row)]
            for size in sizes:
                ids += [*self.marks(size), *words(3)]
            rows.append(ids + words(4))
        width = max(map(len, rows))
        padded = [[PAD] * (width - len(r)) + r if side == "left" else r + [PAD] * (width - len(r)) for r in rows]
        return self._inputs(torch.tensor(padded), layout, range(len(layout)), seed)

    def alone(self, layout: tuple[tuple[int, ...], ...], row: int, seed: int = 0) -> dict[str, Tensor]:
        """Return one prompt of the batch that `prompts` gives, without padding."""
        ids = self.prompts(layout, seed=seed)["input_ids"][row]
        return self._inputs(ids[ids != PAD][None], layout, [row], seed)

    def _inputs(self, ids: Tensor, layout: Any, rows: Any, seed: int) -> dict[str, Tensor]:
        images = [
            [
                self.pixels(size, torch.Generator().manual_seed(1000 * seed + 100 * row + place))
                for place, size in enumerate(layout[row])
            ]
            for row in rows
        ]
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **self.marked(ids)}
        return {**inputs, **(self.gather(images) if any(images) else {})}


class InternVL(Family):
    def config(self, **knobs):
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": [24, 24],
            "patch_size": [4, 4],
            "use_qk_norm": True,
            "layer_scale_init_value": 0.5,
        }
        return InternVLConfig(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, **knobs)

    def model_class(self):
        return InternVLForConditionalGeneration

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(self.counts[size] // 9, 3, 24, 24, generator=generator)}

    def features(self, model, inputs):
        output = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
        runs = itertools.groupby(inputs["input_ids"][0].tolist())
        counts = [len(list(run)) for token, run in runs if token == IMAGE]
        return {"image": list(output.pooler_output.flatten(0, 1).split(counts))}


class Idefics3(Family):
    """Images of several tiles, row by row, and a thumbnail, each behind a marker and its name."""

    MARKER, THUMBNAIL, NEWLINE = 94, 95, 96
    TILES: ClassVar = {0: (0, 0), 1: (1, 2), 2: (2, 2)}
    """Rows and columns of tiles besides the thumbnail."""
    KINDS: ClassVar = (Idefics3Config, Idefics3ForConditionalGeneration)
    SIZE, FACTOR = 24, 2

    def config(self, **knobs):
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": self.SIZE,
            "patch_size": 4,
        }
        text, given = LlamaConfig(**TEXT), {"image_token_id": IMAGE, "scale_factor": self.FACTOR, **knobs}
        return self.KINDS[0](vision_config=vision, text_config=text, pad_token_id=PAD, **given)

    def model_class(self):
        return self.KINDS[1]

    def decoder(self, model):
        return model.model.text_model

    def marks(self, size):
        rows, columns = self.TILES[size]
        tile = [IMAGE] * 9
        ids = []
        for row in range(rows):
            for column in range(columns):
                ids += [self.MARKER, 81 + 3 * row + column, *tile]
            ids += [self.NEWLINE]
        return [*ids, *[self.NEWLINE] * bool(rows), self.MARKER, self.THUMBNAIL, *tile, self.MARKER]

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(self.counts[size] // 9, 3, self.SIZE, self.SIZE, generator=generator)}

    def gather(self, prompts):
        """Pad the tiles of prompts with zeros."""
        none = torch.zeros(0, 3, self.SIZE, self.SIZE)
        tiles = [torch.cat([none, *[image["pixel_values"] for image in images]]) for images in prompts]
        pixels = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
        real = torch.tensor([len(x) for x in tiles])[:, None] > torch.arange(pixels.shape[1])
        mask = real[..., None, None].expand(*real.shape, self.SIZE, self.SIZE).long()
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def features(self, model, inputs):
        given = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask")}
        output = model.model.get_image_features(**given, return_dict=True)
        counts, thumbnail = [0], False
        for token in inputs["input_ids"][0].tolist():
            counts[-1] += token == IMAGE
            if token == self.MARKER and thumbnail:
                counts.append(0)
            thumbnail = token == self.THUMBNAIL or (thumbnail and token == IMAGE)
        return {"image": list(torch.cat(list(output.pooler_output)).split(counts[:-1]))}


class SmolVLM(Idefics3):
    KINDS: ClassVar = (SmolVLMConfig, SmolVLMForConditionalGeneration)
    SIZE, FACTOR = 36, 3


class Gemma3(Family):
    def config(self, window=256, **knobs):
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
        )
        text = Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=window,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
        given = {"mm_tokens_per_image": 16, "image_token_index": IMAGE, **knobs}
        return Gemma3Config(vision_config=vision, text_config=text, **given)

    def model_class(self):
        return Gemma3ForConditionalGeneration

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}

    def marked(self, ids):
        return {"token_type_ids": (ids == IMAGE).long()}

    def beside(self, model, inputs, keep):
        """Let text look back, and tokens of an image at all others of theirs, no further back than the window."""
        image = -1
        images = []
        for token, before in zip(inputs["input_ids"][0].tolist(), [0, *inputs["input_ids"][0].tolist()], strict=False):
            image += token == IMAGE and before != IMAGE
            images.append(image if token == IMAGE else -1)
        left = torch.tensor(images)[keep]
        place = torch.arange(len(left))
        seen = (place <= place[:, None]) | ((left == left[:, None]) & (left >= 0))
        near = place > place[:, None] - model.config.text_config.sliding_window
        masks = {"full_attention": seen, "sliding_attention": seen & near}
        return {"attention_mask": {name: mask[None, None] for name, mask in masks.items()}}


class PaliGemma(Family):
    def text(self):
        return GemmaConfig(**TEXT, head_dim=8)

    def config(self, **knobs):
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 24,
            "patch_size": 4,
            "vision_use_head": False,
        }
        given = {
            "image_token_index": IMAGE,
            "projection_dim": TEXT["hidden_size"],
            "hidden_size": TEXT["hidden_size"],
            **knobs,
        }
        return PaliGemmaConfig(vision_config=vision, text_config=self.text(), **given)

    def model_class(self):
        return PaliGemmaForConditionalGeneration

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(1, 3, 24, 24, generator=generator)}

    def marked(self, ids):
        return {"token_type_ids": torch.zeros_like(ids)}

    def positions(self, model, inputs, keep):
        count = int(keep.sum())
        return torch.arange(1, count + 1)[None], count + 1

    def beside(self, model, inputs, keep):
        """Let all tokens of a prompt see each other."""
        return {"attention_mask": torch.ones(1, 1, int(keep.sum()), int(keep.sum()), dtype=torch.bool)}


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=4
    )


def videos_too(model: Any, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return what the language model reads of videos, where there are any."""
    pixels = inputs.get("pixel_values_videos")
    if pixels is None:
        return {}
    features = model.model.get_video_features(pixels, return_dict=True).pooler_output
    return {"video": list(features.reshape(len(pixels), -1, 32))}


class LlavaNext(Family):
    SIZES: ClassVar = {0: (24, 24), 1: (30, 48), 2: (40, 24)}
    TILES: ClassVar = {0: (1, 2), 1: (2, 2), 2: (2, 1)}
    """Rows and columns of tiles: those of the resolution that fits best."""

    def config(self, **knobs):
        pinpoints = [[24, 48], [48, 24], [48, 48], [72, 24]]
        given = {"image_grid_pinpoints": pinpoints, "image_token_index": IMAGE, **knobs}
        return LlavaNextConfig(text_config=LlamaConfig(**TEXT), **{"vision_config": clip(), **given})

    def model_class(self):
        return LlavaNextForConditionalGeneration

    def pixels(self, size, generator):
        rows, columns = self.TILES[size]
        tiles = torch.randn(1 + rows * columns, 3, 24, 24, generator=generator)
        return {"pixel_values": tiles, "image_sizes": torch.tensor([self.SIZES[size]])}

    def collate(self, images):
        tiles = [image.pop("pixel_values") for image in images if "pixel_values" in image]
        padded = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True) if tiles else None
        return {**super().collate(images), **({} if padded is None else {"pixel_values": padded})}

    def features(self, model, inputs):
        names = ("pixel_values", "image_sizes", "batch_num_images")
        given = {name: inputs[name] for name in names if name in inputs}
        return {"image": list(model.model.get_image_features(**given, return_dict=True).pooler_output)}


class LlavaOnevision(LlavaNext):
    """Sizes from 3 on are images of prompts that hold several."""

    SIZES: ClassVar = {0: (24, 24), 1: (30, 48), 2: (96, 40), 3: (20, 30), 4: (50, 24)}
    TILES: ClassVar = {0: (1, 1), 1: (2, 2), 2: (4, 2), 3: (0, 0), 4: (0, 0)}

    def config(self, **knobs):
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=24,
            patch_size=4,
            vision_use_head=False,
        )
        pinpoints = [[24, 24], [24, 48], [48, 24], [48, 48], [96, 48]]
        given = {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_4", "vision_config": vision}
        given |= {"image_token_index": IMAGE, "video_token_index": VIDEO, **knobs}
        return LlavaOnevisionConfig(text_config=Qwen2Config(**TEXT), **given)

    def model_class(self):
        return LlavaOnevisionForConditionalGeneration

    def pixels(self, size, generator):
        if size >= 0:
            return super().pixels(size, generator)
        return {"pixel_values_videos": torch.randn(1, 3, 3, 24, 24, generator=generator)}

    def features(self, model, inputs):
        images = super().features(model, inputs) if "pixel_values" in inputs else {}
        return images | videos_too(model, inputs)

    def _inputs(self, ids, layout, rows, seed):
        inputs = super()._inputs(ids, layout, rows, seed)
        if any(size > 2 for prompt in layout for size in prompt):
            inputs["batch_num_images"] = torch.tensor([len(layout[row]) for row in rows])
        return inputs


class LlavaNextVideo(LlavaOnevision):
    SIZES: ClassVar = LlavaNext.SIZES
    TILES: ClassVar = LlavaNext.TILES

    def config(self, **knobs):
        pinpoints = [[24, 48], [48, 24], [48, 48], [72, 24]]
        given = {"image_grid_pinpoints": pinpoints, "image_token_index": IMAGE, "video_token_index": VIDEO, **knobs}
        return LlavaNextVideoConfig(text_config=LlamaConfig(**TEXT), **{"vision_config": clip(), **given})

    def model_class(self):
        return LlavaNextVideoForConditionalGeneration


class VideoLlava(Family):
    def config(self, **knobs):
        given = {"image_token_index": IMAGE, "video_token_index": VIDEO, **knobs}
        return VideoLlavaConfig(text_config=LlamaConfig(**TEXT), **{"vision_config": clip(), **given})

    def model_class(self):
        return VideoLlavaForConditionalGeneration

    def pixels(self, size, generator):
        if size >= 0:
            return {"pixel_values": torch.randn(1, 3, 24, 24, generator=generator)}
        return {"pixel_values_videos": torch.randn(1, 3, 3, 24, 24, generator=generator)}

    def features(self, model, inputs):
        images = super().features(model, inputs) if "pixel_values" in inputs else {}
        return images | videos_too(model, inputs)


class QwenVL(Family):
    SIZES: ClassVar = {0: (1, 8, 8), 1: (1, 6, 10), 2: (1, 12, 8), -1: (3, 4, 8), -2: (2, 6, 6)}
    VISION: ClassVar = {"depth": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}

    def pixels(self, size, generator):
        frames, rows, columns = self.SIZES[size]
        patches = torch.randn(frames * rows * columns, 3 * 2 * 16, generator=generator)
        pixels, grid = ("pixel_values", "image_grid_thw") if size >= 0 else ("pixel_values_videos", "video_grid_thw")
        return {pixels: patches, grid: torch.tensor([[frames, rows, columns]])}

    def marked(self, ids):
        return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def _outputs(self, model, inputs):
        found = {}
        if "pixel_values" in inputs:
            found["image"] = model.model.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
            )
        if "pixel_values_videos" in inputs:
            found["video"] = model.model.get_video_features(
                inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
            )
        return found

    def features(self, model, inputs):
        return {kind: list(output.pooler_output) for kind, output in self._outputs(model, inputs).items()}

    def positions(self, model, inputs, keep):
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        positions, _ = model.model.get_rope_index(**{name: inputs.get(name) for name in names})
        return positions[..., keep], int(positions.max()) + 1


class Qwen2(QwenVL):
    def config(self, **knobs):
        vision = {
            **self.VISION,
            "embed_dim": 32,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 4,
            "mlp_ratio": 2,
            **knobs,
        }
        return Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **TOKEN_IDS)

    def model_class(self):
        return Qwen2VLForConditionalGeneration


class Qwen25(QwenVL):
    def config(self, **knobs):
        vision = {
            **self.VISION,
            "hidden_size": 32,
            "out_hidden_size": TEXT["hidden_size"],
            "intermediate_size": 64,
            "num_heads": 4,
            "window_size": 16,
            "fullatt_block_indexes": [0, 2],
            "tokens_per_second": 2,
            **knobs,
        }
        return Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **TOKEN_IDS)

    def model_class(self):
        return Qwen2_5_VLForConditionalGeneration


class Qwen3(QwenVL):
    def config(self, **knobs):
        vision = {
            **self.VISION,
            "hidden_size": 32,
            "out_hidden_size": TEXT["hidden_size"],
            "intermediate_size": 64,
            "num_heads": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 2],
            **knobs,
        }
        text = {**TEXT, "head_dim": 8, "rope_parameters": MROPE}
        return Qwen3VLConfig(vision_config=vision, text_config=text, **TOKEN_IDS)

    def model_class(self):
        return Qwen3VLForConditionalGeneration

    def marks(self, size):
        if size >= 0:
            return super().marks(size)
        frames = self.SIZES[size][0]
        frame = [START, *[VIDEO] * (self.counts[size] // frames), END]
        return [token for number in range(frames) for token in (81 + number, *frame)]

    def beside(self, model, inputs, keep):
        ids = inputs["input_ids"][0]
        planes = [torch.zeros(len(ids), TEXT["hidden_size"]) for _ in range(2)]
        for kind, output in self._outputs(model, inputs).items():
            for plane, images in zip(planes, output.deepstack_features, strict=True):
                plane[ids == (IMAGE if kind == "image" else VIDEO)] = torch.cat(list(images))
        visual = torch.isin(ids, torch.tensor([IMAGE, VIDEO])) & keep
        return {"visual_pos_masks": visual[keep][None], "deepstack_visual_embeds": [plane[visual] for plane in planes]}


class Qwen2Audio(Family):
    STEPS: ClassVar = {0: 41, 1: 100, 2: 70}

    def config(self, **knobs):
        audio = Qwen2AudioEncoderConfig(
            num_mel_bins=8,
            encoder_layers=3,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            d_model=32,
            max_source_positions=50,
        )
        text = Qwen2Config(**TEXT)
        return Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=IMAGE, **knobs)

    def model_class(self):
        return Qwen2AudioForConditionalGeneration

    def pixels(self, size, generator):
        real = (torch.arange(100) < self.STEPS[size]).long()[None]
        spectra = torch.randn(1, 8, 100, generator=generator) * real - 0.5 * (1 - real)
        return {"input_features": spectra, "feature_attention_mask": real}

    def features(self, model, inputs):
        found = []
        for spectrum, real in zip(inputs["input_features"], inputs["feature_attention_mask"], strict=True):
            frames = (int(real.sum()) + 1) // 2
            mask = torch.zeros(1, 1, 50, 50).masked_fill(torch.arange(50) >= frames, -torch.inf)
            states = model.model.audio_tower(spectrum[None], attention_mask=mask).last_hidden_state
            found.append(model.model.multi_modal_projector(states)[0, : frames // 2])
        return {"image": found}


OF_VIDEOS = ("evs", "vidcom2", "dycoke", "fastvid", "holitom")
"""Methods of videos alone."""
INSIDE = ("fastv", "sparsevlm", "pyramiddrop", "dart", "idselection-inside")
"""Methods that drop tokens in the first layers of the language model."""
NO_FRAMES = dict.fromkeys(OF_VIDEOS, "frames is not available: the images are not frames of a video")
NO_COMPANION = "relevance is not available: no image-text companion was given"
NO_AUDIO_COMPANION = "relevance is not available: no image-text companion reads audio clips"
NO_CLS = "wide_cls_attention@1 is not available: this vision tower has no [CLS] token"
QWEN_COUNTS = {0: 16, 1: 15, 2: 24, -1: 24, -2: 18}
QWEN_REFUSED = {
    "downsample": "a smaller image is not available: the processor decides",
    **NO_FRAMES,
    "cdpruner": NO_COMPANION,
    "trim": NO_COMPANION,
    "prumergeplus": NO_CLS,
    "sparsevlm": "sparsevlm merges tokens, which have no place where positions have several axes",
}
QWEN3_REFUSED = {
    **QWEN_REFUSED,
    **dict.fromkeys(
        INSIDE,
        "because planes of them enter the first 2 layers of this language model",
    ),
}

TILE_COUNTS = {0: 9, 1: 27, 2: 45}
LLAVA = Family("llava", {0: 36}, has_cls=True, refused=NO_FRAMES)
"""What there is to say of LLaVA-1.5, whose tiny model and tests have files of their own."""

NEXT_COUNTS = {0: 78, 1: 140, 2: 106}
NEXT_VIDEO_COUNTS = {**NEXT_COUNTS, -1: 27, -2: 27}
NEXT_REFUSED = {
    "downsample": "a smaller image is not available: this model cuts images into tiles of one size",
    **NO_FRAMES,
    "cdpruner": NO_COMPANION,
    "trim": NO_COMPANION,
}

NO_CLS_REFUSED = {
    **NEXT_REFUSED,
    "prumergeplus": NO_CLS,
}

WHOLE = "tokens cannot be dropped inside Gemma3TextModel, whose layers do not all attend to the whole prompt"
WINDOWED_REFUSED = {
    **NO_CLS_REFUSED,
    "downsample": "a smaller image is not available: this model takes one image size only",
    **dict.fromkeys((*INSIDE, "vscan"), WHOLE),
}

PREFIX_REFUSED = {
    **{name: why for name, why in NO_CLS_REFUSED.items() if name != "downsample"},
    **dict.fromkeys(
        (*INSIDE, "vscan"),
        "tokens cannot be dropped inside GemmaModel, whose tokens attend to later ones",
    ),
}
ONEVISION_COUNTS = {0: 78, 1: 140, 2: 180, 3: 37, 4: 37, -1: 28, -2: 28}
VIDEO_LLAVA_COUNTS = {0: 36, 1: 36, 2: 36, -1: 111, -2: 111}
VIDEO_LLAVA_REFUSED = {name: why for name, why in NEXT_REFUSED.items() if name != "downsample"}

INTERNVL_REFUSED = {
    **NEXT_REFUSED,
    "visionzip": "cls_features is not available: the projector reads several patches as one row",
}

AUDIO_REFUSED = {
    "downsample": "a smaller image is not available: audio clips are not images",
    **dict.fromkeys(OF_VIDEOS, "frames is not available: audio clips are not videos"),
    "cdpruner": NO_AUDIO_COMPANION,
    "trim": NO_AUDIO_COMPANION,
    "prumergeplus": "wide_cls_attention@1 is not available: audio towers have no [CLS] token",
}

NO_PROMPT = "drops tokens between layers that read them in a prompt, but the decoder of Whisper"
WHISPER_REFUSED = {
    **AUDIO_REFUSED,
    **dict.fromkeys((*INSIDE, "vscan"), NO_PROMPT),
    "mmtok": "word_similarity is not available: the decoder reads a clip by cross-attention",
}
WHISPER = Family("whisper", {0: 21}, refused=WHISPER_REFUSED)
"""What there is to say of Whisper, an encoder-decoder, whose tiny model and tests have files of their own."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Gemma3("gemma3", dict.fromkeys(range(3), 16), causal=False, refused=WINDOWED_REFUSED),
        Idefics3("idefics3", TILE_COUNTS, refused=NO_CLS_REFUSED),
        SmolVLM("smolvlm", TILE_COUNTS, refused=NO_CLS_REFUSED),
        InternVL("internvl", {0: 9, 1: 18, 2: 27}, has_cls=True, refused=INTERNVL_REFUSED),
        LlavaNext("llava_next", NEXT_COUNTS, has_cls=True, refused=NEXT_REFUSED),
        PaliGemma("paligemma", dict.fromkeys(range(3), 36), causal=False, refused=PREFIX_REFUSED),
        LlavaNextVideo("llava_next_video", NEXT_VIDEO_COUNTS, has_cls=True, refused=NEXT_REFUSED),
        LlavaOnevision("llava_onevision", ONEVISION_COUNTS, refused=NO_CLS_REFUSED),
        Qwen2Audio("qwen2_audio", {0: 10, 1: 25, 2: 17}, refused=AUDIO_REFUSED, mixes_in_search=True),
        Qwen2("qwen2_vl", QWEN_COUNTS, axes=3, refused=QWEN_REFUSED),
        Qwen25("qwen2_5_vl", QWEN_COUNTS, axes=3, refused=QWEN_REFUSED),
        Qwen3("qwen3_vl", QWEN_COUNTS, axes=3, refused=QWEN3_REFUSED),
        VideoLlava("video_llava", VIDEO_LLAVA_COUNTS, has_cls=True, refused=VIDEO_LLAVA_REFUSED),
    )
}
