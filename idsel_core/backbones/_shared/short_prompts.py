"""How prompts of a family are shortened to the visual tokens that were selected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from idsel_core.backbones._shared.family import Family
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.prompts import PER_TOKEN, drop_columns, kept_columns, real_columns
from idsel_core.visual_tokens import VisualTokens

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection

POSITIONS = ("compact", "keep")


class ShortPrompts(Family):
    """A family whose prompts can be shortened."""

    position_axes: ClassVar[int] = 1
    """Axes of a token's position in the language model. Of several, no token can be numbered anew."""
    first_position: ClassVar[int] = 0
    """Position of the first token in a call of ``forward``; ``generate`` counts from 0."""
    joined_kinds: ClassVar[tuple[str, ...]] = ()
    """Of "image", "video" and "audio", those whose features the core takes as one tensor, not as a list."""

    def answer_mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Mark the tokens of a call of the model that are known to be of an answer, bool (B, L); None if none are.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``.
        """
        labels = inputs.get("labels")
        return None if labels is None else labels != PER_TOKEN["labels"]

    def joined(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the model's core in which what `shorten` gives is one tensor where the core expects one.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``forward``, with a list of features, one an image, of each kind in ``mm_encoder_outputs``.
        """
        outputs: dict[str, Any] = dict(inputs.get("mm_encoder_outputs") or {})
        for kind in self.joined_kinds:
            kept = getattr(outputs.get(kind), "pooler_output", None)
            if isinstance(kept, list):
                output: Any = BaseModelOutputWithPooling
                outputs[kind] = output(pooler_output=torch.cat(kept)[None])
        return {**inputs, "mm_encoder_outputs": outputs} if outputs else dict(inputs)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the model read what `shorten` gives, a list of features, also where its core expects one tensor."""

        def join(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, self.joined(kwargs)

        with ExitStack() as stack:
            if self.joined_kinds:
                stack.callback(self.core.register_forward_pre_hook(in_this_thread(join), with_kwargs=True).remove)
            yield

    def encoder_outputs(self, tokens: VisualTokens, selection: Selection) -> dict[str, Any]:
        """Wrap the kept features in the form of the model's ``mm_encoder_outputs``, new for one call."""
        output: Any = BaseModelOutputWithPooling
        kept = _kept_features(tokens, selection)
        video = [False] * len(tokens) if tokens.video is None else tokens.video.tolist()
        return {
            kind: output(
                pooler_output=[features for features, is_video in zip(kept, video, strict=True) if is_video is own]
            )
            for kind, own in (("image", False), ("video", True))
            if own in video
        }

    def shorten(
        self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection, positions: str | None = None
    ) -> dict[str, Any]:
        """Cut the tokens that were not selected out of a call of the model.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        tokens : VisualTokens
            Of the call's images.
        selection : Selection
            What a method chose from `tokens`.
        positions : {"compact", "keep"}, optional
            Number the remaining tokens anew, or leave gaps where tokens were. By default anew, where positions have
            one axis.

        Returns
        -------
        dict[str, Any]
            Shortened arguments with the kept features as ``mm_encoder_outputs``, good for one call.

        Raises
        ------
        ValueError
            If `positions` is unknown, or images, selection and placeholders do not agree.
        """
        positions = self.positions_of(positions)
        if len(selection) != len(tokens):
            raise ValueError(f"the selection has {len(selection)} rows for {len(tokens)} images")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if positions == "keep" and inputs.get("position_ids") is None:
            inputs["position_ids"] = self.full_positions(inputs)
        left_out = (*self.image_inputs, "question_mask")
        inputs = {name: value for name, value in inputs.items() if name not in left_out}
        keep, real = self.kept(inputs, tokens, selection)
        if positions == "compact" and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] - (real & ~keep).cumsum(1)
        pad_token_id = getattr(self.model.generation_config, "pad_token_id", None) or 0
        short = drop_columns(inputs, keep, real, pad_token_id)
        short["mm_encoder_outputs"] = self.encoder_outputs(tokens, selection)
        return short

    def kept(self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection) -> tuple[Tensor, Tensor]:
        """Return which columns of full prompts stay, and which are no padding, bool (B, L) each.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        tokens, selection
            As for `shorten`.
        """
        input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        slots, real = tokens.slots, real_columns(input_ids, mask)
        if slots is None or tokens.prompts is None or tokens.prompts.input_ids is not input_ids:
            slots = self.locate(input_ids, tokens.full_lengths, tokens.video, mask)
        return kept_columns(slots, real, tokens.lengths, selection), real

    def positions_of(self, positions: str | None) -> str:
        """Return how the remaining tokens are numbered, "compact" or "keep", given what was asked for, if anything.

        Raises
        ------
        ValueError
            If the choice is unknown, or not one of this family.
        """
        if positions is None:
            return "compact" if self.position_axes == 1 else "keep"
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        if positions == "compact" and self.position_axes > 1:
            raise ValueError(
                f'positions="compact" cannot be had: positions of this model have {self.position_axes} axes, and '
                f"tokens keep theirs"
            )
        return positions

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return position ids of the full prompts, as ``generate``, or else ``forward``, gives them.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Of ``generate``.
        """
        input_ids: Tensor = inputs["input_ids"]
        if not generating:
            return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        positions: Tensor = self.model._prepare_position_ids_for_generation(input_ids, dict(inputs))
        return positions

    def next_positions(self, short: Mapping[str, Any], generating: bool) -> Tensor:
        """Return the position of a token that would follow each column of shortened prompts, int64 (1 or B, W).

        Parameters
        ----------
        short : Mapping[str, Any]
            What `shorten` returned last, with ``input_ids`` (B, W).
        generating : bool
            Whether it is a call of ``generate``. Positions are counted as there, from 0.
        """
        ids, mask, positions = (short.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        assert ids is not None
        real = real_columns(ids, mask)
        if positions is None:
            positions = real.cumsum(1) - 1 if generating else torch.arange(ids.shape[1], device=ids.device)[None]
        elif not generating:
            positions = positions - self.first_position
        positions = positions.expand(real.shape).masked_fill(~real, -1)
        ends: Tensor = positions.cummax(1).values + 1
        # Text stands where the full prompt has it, whatever was cut out before it.
        text = real[:, 1:] & ~self.placeholders(ids)[:, 1:]
        return torch.cat([positions[:, 1:].where(text, ends[:, :-1]), ends[:, -1:]], 1)


def _kept_features(tokens: VisualTokens, selection: Selection) -> list[Tensor]:
    kept = []
    for row, (picks, count) in enumerate(zip(selection.indices, selection.counts.tolist(), strict=True)):
        if selection.features is None:
            kept.append(tokens.features[row, picks[:count].to(tokens.features.device)])
        else:
            kept.append(selection.features[row, :count].to(tokens.features.dtype))
    return kept
