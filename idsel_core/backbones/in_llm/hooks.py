"""Hooks that let visual tokens leave between layers of the language model, and later steps go on without them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from idsel_core.backbones._shared.caches import cache_in
from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.instruction import moved, moved_ends
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.prompts import real_columns
from idsel_core.backbones._shared.shortened_caches import SPANS_ATTRIBUTE
from idsel_core.backbones.in_llm.checks import check_cache, check_decoder
from idsel_core.backbones.in_llm.decode import DecodeStep, Span
from idsel_core.backbones.in_llm.passage import Passage, Plan
from idsel_core.backbones.in_llm.prefill import PromptPass
from idsel_core.methods import Method
from idsel_core.methods._shared.in_llm import drops_inside
from idsel_core.scores.attention_rows import last_token
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@contextmanager
def dropping(
    backbone: Backbone, method: Method, tokens: VisualTokens, selection: Selection, prompts: Mapping[str, Any]
) -> Iterator[Passage]:
    """Let a method drop visual tokens inside the language model in the one call of the model that follows.

    The call may be ``generate`` or ``forward``, on prompts from `Backbone.shorten`. Methods that choose before the
    language model alone pass through untouched.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    method : Method
        Of any kind; only an `InLLM` acts.
    tokens : VisualTokens
        Of the call's images.
    selection : Selection
        What the method selected from `tokens`.
    prompts : Mapping[str, Any]
        The arguments of the call, with ``input_ids``.

    Yields
    ------
    Passage
        Filled while the prompt is read.

    Raises
    ------
    ValueError
        If the budget cannot be reached, or the language model or its cache is of a kind that does not allow it.
    """
    passage = Passage(selection, backbone.decoder_layers)
    if not drops_inside(method):
        yield passage
        return
    check_decoder(backbone.language_model)
    ids, mask = prompts["input_ids"], prompts.get("attention_mask")
    placeholder, real = backbone.placeholders(ids), real_columns(ids, mask)
    given, text = tokens.prompts, real & ~placeholder
    plan = Plan(
        method=method,
        slots=backbone.locate(ids, selection.counts, tokens.video, mask),
        placeholder=placeholder,
        places=method.drop_layers(passage.depth),
        counts=method.counts(tokens.lengths, selection.counts, passage.depth),
        passage=passage,
        words=moved(given.words, given.text, text) if method.reads_words and given is not None else None,
        ends=last_token(real) if given is None else moved_ends(given.ends, given.text, real, text),
        labelled=prompts.get("labels") is not None,
    )
    with _hooks(backbone.language_model, plan):
        yield passage


@contextmanager
def following(backbone: Backbone, cache: Any) -> Iterator[None]:
    """Let calls of the model go on from a cache that was filled under `dropping`; other caches are not touched."""
    if not getattr(cache, SPANS_ATTRIBUTE, ()):
        yield
        return
    with _hooks(backbone.language_model, None):
        yield


@contextmanager
def _hooks(decoder: Any, plan: Plan | None) -> Iterator[None]:
    with ExitStack() as stack:
        hooks = _Hooks(decoder, plan, stack)
        handles = [decoder.register_forward_pre_hook(in_this_thread(hooks.before_decoder), with_kwargs=True)]
        for index, layer in enumerate(decoder.layers):
            before_layer = in_this_thread(functools.partial(hooks.before_layer, index))
            handles.append(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
        if plan is not None and plan.labelled:
            handles.append(decoder.register_forward_hook(in_this_thread(hooks.after_decoder)))
        for handle in handles:
            stack.callback(handle.remove)
        yield


class _Hooks:
    """Before each pass through the decoder, find out what kind it is; before each layer, give it its share."""

    def __init__(self, decoder: Any, plan: Plan | None, stack: ExitStack) -> None:
        self.decoder, self.plan, self.stack = decoder, plan, stack
        self.began = False
        self.reading: PromptPass | None = None
        self.step: DecodeStep | None = None

    def before_decoder(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.reading = self.step = None
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        if cache is not None and cache.get_seq_length():
            spans: tuple[Span, ...] = getattr(cache, SPANS_ATTRIBUTE, ())
            if spans:
                self.step = DecodeStep(self.decoder, spans, mask)
            return
        if cache is not None:
            vars(cache).pop(SPANS_ATTRIBUTE, None)
        if self.plan is not None and not self.began:
            if cache is not None:
                check_cache(cache)
            planes = len(kwargs.get("deepstack_visual_embeds") or ())
            if planes > self.plan.places[0]:
                raise ValueError(
                    f"{self.plan.method.name} cannot drop tokens before layer {self.plan.places[0]}, because planes of "
                    f"them enter the first {planes} layers of this language model; choose layers from {planes} on"
                )
            self.began = True
            self.reading = PromptPass(self.decoder, self.plan, kwargs["inputs_embeds"], mask, self.stack)
            self.reading.several_axes(kwargs.get("position_ids"))
        elif self.plan is not None and cache is None:
            raise ValueError(
                f"{self.plan.method.name} drops tokens while the prompt is read once: generate() needs use_cache=True"
            )

    def after_decoder(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.reading is None:
            return None
        if isinstance(output, tuple):
            return self.reading.widened(output[0]), *output[1:]
        output.last_hidden_state = self.reading.widened(output.last_hidden_state)
        return output

    def before_layer(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self.reading or self.step
        if now is None:
            return None
        hidden, changes = now.before_layer(index, args[0] if args else kwargs["hidden_states"], kwargs)
        if not args:
            return args, {**kwargs, **changes, "hidden_states": hidden}
        return (hidden, *args[1:]), {**kwargs, **changes}
