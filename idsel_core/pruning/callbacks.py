"""Callbacks of ``generate`` that see the prompts as the caller gave them, not as they were shortened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList


@dataclass(frozen=True, eq=False)
class GivenPrompts:
    """The prompts as they were given, in place of the shortened ones.

    Parameters
    ----------
    prompts : Tensor
        int64 (B, L).
    width : int
        Columns of the shortened prompts.
    """

    prompts: Tensor
    width: int

    def restore(self, sequences: Tensor) -> Tensor:
        """Return sequences (R, W + T) that begin with shortened prompts with the given ones in front, (R, L + T).

        Parameters
        ----------
        sequences : Tensor
            R = B times the beams or samples of a prompt, one behind the other.
        """
        prompts, copies = self.prompts.to(sequences.device), len(sequences) // len(self.prompts)
        prompts = prompts.repeat_interleave(copies, 0) if copies > 1 else prompts
        return torch.cat([prompts, sequences[:, self.width :]], 1)

    def callbacks(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those arguments of ``generate`` that are told about the prompts, so that they see the given ones."""
        wrapped: dict[str, Any] = {}
        if options.get("stopping_criteria"):
            given = options["stopping_criteria"]
            wrapped["stopping_criteria"] = StoppingCriteriaList([_Criterion(self, each) for each in given])
        if options.get("logits_processor"):
            given = options["logits_processor"]
            wrapped["logits_processor"] = LogitsProcessorList([_Processor(self, each) for each in given])
        if (allowed := options.get("prefix_allowed_tokens_fn")) is not None:
            wrapped["prefix_allowed_tokens_fn"] = lambda prompt, tokens: allowed(
                prompt, torch.cat([self.prompts[prompt].to(tokens.device), tokens[self.width :]])
            )
        if options.get("streamer") is not None:
            wrapped["streamer"] = _Streamer(self, options["streamer"])
        return wrapped


class _Criterion(StoppingCriteria):
    def __init__(self, given: GivenPrompts, criterion: Callable[..., Any]) -> None:
        self.given, self.criterion = given, criterion

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        return self.criterion(self.given.restore(input_ids), scores, **options)


class _Processor(LogitsProcessor):
    def __init__(self, given: GivenPrompts, processor: Callable[..., Any]) -> None:
        self.given, self.processor = given, processor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.processor(self.given.restore(input_ids), scores)


class _Streamer:
    """A streamer is told the prompts first, then each new token."""

    def __init__(self, given: GivenPrompts, streamer: Any) -> None:
        self.given, self.streamer, self.began = given, streamer, False

    def put(self, value: Tensor) -> None:
        self.streamer.put(value if self.began else self.given.restore(value))
        self.began = True

    def end(self) -> None:
        self.streamer.end()
