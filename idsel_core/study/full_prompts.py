"""Write full prompts, with all visual tokens, by a model's own processor and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idsel_core.study.sources.clips import misfit
from idsel_core.study.sources.split import Kind


@dataclass(frozen=True, eq=False)
class PromptWriter:
    """Writes prompts: images or audio clips first, then the question, as one turn of the user.

    Parameters
    ----------
    processor : Any
        Of the model.
    device : torch.device
        Where the model takes its inputs.
    dtype : torch.dtype
        Of pixels and spectra.
    kind : {"image", "audio"}
        What the questions are about.
    """

    processor: Any
    device: torch.device
    dtype: torch.dtype
    kind: Kind = "image"

    def text(self, question: str, images: int) -> str:
        """Return a prompt in which each image or clip has its one mark, before the processor makes room for its tokens.

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
            return f"{getattr(self.processor, f'{self.kind}_token', '') * images}{question}"
        content = [{"type": self.kind}] * images + [{"type": "text", "text": question}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def write(self, questions: Sequence[str], shown: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """Return all inputs of the model for questions, padded on the left.

        Parameters
        ----------
        questions : sequence of str
            B texts.
        shown : sequence of sequence
            The images of each, or the samples of its clips at `rate`, float32 (T,).

        Raises
        ------
        ValueError
            As of `text`; also if the model cannot take a clip.
        """
        texts = [self.text(question, len(own)) for question, own in zip(questions, shown, strict=True)]
        if not any(shown):
            return self._words(texts)
        given: dict[str, Any] = {"images": [list(own) for own in shown]}
        if self.kind == "audio":
            clips = [clip for own in shown for clip in own]
            why = next(filter(None, (misfit(len(clip), self.processor.feature_extractor) for clip in clips)), "")
            if why:
                raise ValueError(f"an audio clip {why}")
            given = {"audio": clips, "sampling_rate": self.rate}
        inputs = self.processor(text=texts, **given, padding=True, return_tensors="pt", **self._special(texts))
        return dict(inputs.to(self.device, self.dtype))

    @property
    def rate(self) -> int:
        """Samples a second of the clips that the model takes."""
        return int(self.processor.feature_extractor.sampling_rate)

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
        """A hash of the chat template, and of what the processor does with an image or clip."""
        template = str(getattr(self.processor, "chat_template", None))
        part = "feature_extractor" if self.kind == "audio" else "image_processor"
        images = getattr(self.processor, part, None)
        settings = "" if images is None else str(sorted(images.to_dict().items(), key=lambda item: item[0]))
        return short_hash(template + settings)


def short_hash(text: str) -> str:
    """Return twelve hex digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
