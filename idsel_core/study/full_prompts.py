"""Write full prompts, with all visual tokens, by a model's own processor and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptWriter:
    """Writes prompts: images first, then the question, as one turn of the user.

    Parameters
    ----------
    processor : Any
        Of the model.
    device : torch.device
        Where the model takes its inputs.
    dtype : torch.dtype
        Of pixels.
    """

    processor: Any
    device: torch.device
    dtype: torch.dtype

    def text(self, question: str, images: int) -> str:
        """Return a prompt in which each image has its one mark, before the processor makes room for its tokens.

        Raises
        ------
        ValueError
            If the question holds such a mark itself.
        """
        for name in ("image_token", "video_token", "audio_token"):
            mark = getattr(self.processor, name, None)
            if isinstance(mark, str) and mark and mark in question:
                raise ValueError(
                    f"the question {question!r} holds {mark!r}, which this model reads as the place of input"
                )
        if not getattr(self.processor, "chat_template", None):
            return f"{getattr(self.processor, 'image_token', '') * images}{question}"
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def write(self, questions: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """Return all inputs of the model for questions, each with its pictures, padded on the left."""
        texts = [self.text(question, len(shown)) for question, shown in zip(questions, pictures, strict=True)]
        if not any(pictures):
            return self._words(texts)
        shown = [list(one) for one in pictures]
        inputs = self.processor(text=texts, images=shown, padding=True, return_tensors="pt", **self._special(texts))
        return dict(inputs.to(self.device, self.dtype))

    def write_with_placeholders(self, questions: Sequence[str], placeholders: Sequence[int]) -> dict[str, Tensor]:
        """Return prompts whose one image, if any, fills so many placeholders, of a model with a fixed grid."""
        image = self.processor.image_token
        asked = zip(questions, placeholders, strict=True)
        return self._words([self.text(text, bool(count)).replace(image, image * count) for text, count in asked])

    def _words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = self.processor.tokenizer(list(texts), padding=True, return_tensors="pt", **self._special(texts))
        return {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _special(self, texts: Sequence[str]) -> dict[str, bool]:
        """Leave out special tokens that the chat template has written already."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and texts[0].startswith(begin) else {}

    @property
    def template_hash(self) -> str:
        """A hash of the chat template, and of what the processor does with an image."""
        template = str(getattr(self.processor, "chat_template", None))
        images = getattr(self.processor, "image_processor", None)
        settings = "" if images is None else str(sorted(images.to_dict().items(), key=lambda item: item[0]))
        return short_hash(template + settings)


def short_hash(text: str) -> str:
    """Return twelve hex digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
