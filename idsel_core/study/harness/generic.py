"""The harness's model for families that it has no class for: any backbone, through its own processor and template."""

from __future__ import annotations

from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from idsel_core.loading.hub import load

MAX_NEW_TOKENS = 1024
"""Longest answer where a task names none, as in the harness's class for LLaVA."""


class Generic(lmms):  # type: ignore[misc]
    """A model that is loaded by `load`, one request at a time.

    Parameters
    ----------
    pretrained : str
        Hub id or folder.
    device : str
        As torch names it.
    device_map : str, optional
        "auto" spreads the model over all GPUs; by default it lies on `device`.
    dtype, quantisation, revision
        As for `load`.
    attn_implementation : str, optional
        Attention implementation.
    system_prompt : str, optional
        Text of a system turn before the question.
    use_cache : bool
        Whether to generate with a KV cache.
    batch_size : int
        Must be 1.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str = "cuda",
        device_map: str | None = None,
        dtype: str = "bfloat16",
        quantisation: Any = None,
        revision: str = "main",
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        use_cache: bool = True,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        where = device_map or (None if device == "cpu" else device)
        self._model, self.processor = load(
            pretrained,
            dtype=dtype,
            device_map=None if where == "cpu" else where,
            quantisation=quantisation,
            attention=attn_implementation,
            revision=revision,
        )
        self._device = torch.device(device)
        self.system_prompt, self.use_cache = system_prompt, use_cache

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where prompts are put."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Requests at a time."""
        return 1

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answer requests one by one."""
        return [self._generate_one(*request.args) for request in requests]

    @torch.no_grad()
    def _generate_one(
        self, _: str, to_messages: Any, options: dict[str, Any], doc_id: int, task: str, split: str
    ) -> Any:
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        if self.system_prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        inputs = self._inputs(messages).to(self._device, self._model.dtype)
        output = self._model.generate(**inputs, **_generation(options), use_cache=self.use_cache)
        text = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        for stop in _stops(options):
            text = text.split(stop)[0]
        return GenerationResult(text=text)

    def _inputs(self, messages: list[dict[str, Any]]) -> Any:
        if getattr(self.processor, "chat_template", None):
            return self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        # PaliGemma has no turns: its prompt is its images and then the text.
        parts = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        text = self.processor.image_token * len(images) + "\n".join(p["text"] for p in parts if p["type"] == "text")
        if len(images) + sum(part["type"] == "text" for part in parts) < len(parts):
            raise ValueError(f"{type(self.processor).__name__} has no chat template, so it reads images and text alone")
        return self.processor(text=text, images=images or None, return_tensors="pt")

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Refuse: answers are generated."""
        raise NotImplementedError("log likelihoods are not computed")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Refuse: answers are generated in one turn."""
        raise NotImplementedError("conversations of several turns are not asked")


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of ``generate`` from those of a task; greedy unless it gives a temperature above 0."""
    sampled = float(options.get("temperature") or 0) > 0
    chosen = {"do_sample": sampled, "max_new_tokens": int(options.get("max_new_tokens") or MAX_NEW_TOKENS)}
    chosen |= {"num_beams": int(options.get("num_beams") or 1)}
    return chosen | {name: options[name] if sampled else None for name in ("temperature", "top_p") if name in options}


def _stops(options: dict[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
