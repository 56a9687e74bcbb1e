"""Relevance to the question from CLIP, for models whose vision tower is CLIP's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from idsel_core.backbones._shared.tensors import as_weights


class ClipCompanion:
    """CLIP's shared space for patches of its own vision tower and for questions.

    The tower is not run: the input of the LVLM's projector goes through CLIP's last layer norm and visual projection,
    as in TRIM (arXiv 2409.10994) and CDPruner (arXiv 2506.10967). For LLaVA these are patches of the last tower layer
    but one, which CLIP itself never projects. Patches were not trained to match text, not even those of the last layer:
    their similarity has the wrong sign, so give these two methods ``negated=True``. LLaVA-1.5 kept CLIP's tower frozen;
    LLaVA-NeXT tuned it, so the space fits less well there.

    Parameters
    ----------
    clip : CLIPModel
        In evaluation mode. Its vision tower may lack its layers.
    clip_tokenizer : PreTrainedTokenizer
        Tokenizer of `clip`.
    tokenizer : PreTrainedTokenizer
        Tokenizer of the LVLM, which decodes its prompts to text.
    clean : Callable[[str], str]
        Makes the question for CLIP from the user's words, for example without the cue for an answer.

    Raises
    ------
    TypeError
        If `clip` is not a CLIP model.
    """

    def __init__(self, clip: Any, clip_tokenizer: Any, tokenizer: Any, clean: Callable[[str], str] = str.strip) -> None:
        if not isinstance(clip, CLIPModel):
            raise TypeError(f"clip must be a CLIPModel, not {type(clip).__name__}")
        self.clip: Any = clip
        self.clip_tokenizer = clip_tokenizer
        self.tokenizer = tokenizer
        self.clean = clean

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        tokenizer: Any,
        *,
        device: str | torch.device = "cpu",
        clean: Callable[[str], str] = str.strip,
        revision: str = "main",
        local_files_only: bool = False,
    ) -> Self:
        """Load CLIP in float32 without the layers of its vision tower, from safetensors only.

        Parameters
        ----------
        name : str or Path
            Hub id, such as that of the LVLM's tower, ``openai/clip-vit-large-patch14-336``, or folder.
        tokenizer, clean
            As for the class.
        device : str or torch.device
            Device of CLIP.
        revision : str
            Branch, tag or commit of a hub checkpoint.
        local_files_only : bool
            Whether to use only the local cache of the hub.
        """
        source: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        read: Any = CLIPModel.from_pretrained
        read_tokenizer: Any = AutoTokenizer.from_pretrained
        clip = read(name, dtype=torch.float32, use_safetensors=True, **source).eval()
        del clip.vision_model.encoder
        return cls(clip.to(device), read_tokenizer(name, trust_remote_code=False, **source), tokenizer, clean)

    def project(self, encoder_features: Tensor) -> Tensor:
        """Map patches, (I, N, Dv), to the shared space, (I, N, Dp); rows of zeros, which are no patches, to zeros.

        Raises
        ------
        ValueError
            If CLIP's tower has another width.
        """
        norm, projection = self.clip.vision_model.post_layernorm, self.clip.visual_projection
        if encoder_features.shape[-1] != projection.in_features:
            raise ValueError(
                f"this CLIP projects features of width {projection.in_features}, the vision tower gives "
                f"{encoder_features.shape[-1]}"
            )
        features = as_weights(encoder_features, norm)
        projected: Tensor = projection(norm(features))
        return projected * features.any(-1, keepdim=True)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map questions of the LVLM's vocabulary, int64 (I, T) padded at the end, to the shared space, (I, Dp).

        Questions are decoded to text and truncated to the number of tokens that CLIP can read.
        """
        rows = [ids[real.bool()] for ids, real in zip(input_ids, attention_mask, strict=True)]
        texts = [self.clean(text) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]
        tokens = self.clip_tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.clip.device)
        output = self.clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embedded: Tensor = output.pooler_output
        return embedded
