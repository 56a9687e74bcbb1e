"""Prune visual tokens of a model inside a ``with`` block."""

from __future__ import annotations

from typing import Any, Literal

from idsel_core.backbones import Relevance
from idsel_core.methods import Method
from idsel_core.pruning.block import Pruning
from idsel_core.pruning.budget_scope import Scope


def prune(
    model: Any,
    method: Method,
    positions: Literal["compact", "keep"] | None = None,
    relevance: Relevance | None = None,
    budget_scope: Scope = "image",
    processor: Any = None,
    full_logits: bool | None = None,
    keep_encodings: int = 0,
) -> Pruning:
    """Let a model read only the visual tokens that a method selects.

    Inside the block, ``model.generate(...)`` and ``model(...)`` with ``pixel_values`` encode the images once, select,
    and run on a shorter prompt: the cache is shorter, and so are hidden states. Methods that drop tokens inside the
    language model (`InLLM`) make the cache of the layers behind each drop shorter, and the logits as short as the last
    layer, or, with labels, as long as the prompt before the drops. Sequences that ``generate`` returns begin with the
    prompt as it was given, and logits of ``model(...)`` have its columns, see `full_logits`. Calls without images are
    not touched. Blocks nest: the innermost of a thread decides; a call in a thread without a block is pruned by the
    block that was entered last. After the outermost, also when it raises, the model is what it was.

    ``generate`` may search, sample, take drafts from an assistant or from the prompt, read the prompt in chunks, and
    use a static cache, compiled or not. The language model may be compiled, and attend in any way that transformers
    knows (SDPA, eager, FlashAttention, one of your own): scores come from queries and keys, and kernels stay what they
    are. Methods that drop tokens inside the language model need a `DynamicCache`, and one compiled in place at most.

    Methods that read text read the user's own words of the last turn before the answer; labels that are not -100, and
    what the chat template puts between turns, tell where an answer begins. A call may say itself which tokens ask:
    ``question_mask``, bool or int of the shape of ``input_ids``, among its arguments.

    A cache that was filled in a block goes on in a block of the same model alone, by ``model(...)`` or
    ``model.generate(...)`` with the new tokens alone, or with the whole conversation; elsewhere it refuses. The
    attention mask may be as long as the new tokens, as the shortened cache with them, or as the whole conversation.

    Parameters
    ----------
    model : PreTrainedModel
        A model of a supported family, see `idsel_core.backbones.BACKBONES`; it may be wrapped by PEFT, DataParallel,
        DistributedDataParallel or ``torch.compile``.
    method : Method
        For example ``IDSelection(budget=64)``.
    positions : {"compact", "keep"}, optional
        Number the remaining tokens anew, or let them keep the positions that they had in the full prompt. By default
        anew, where positions have one axis; where they have several, tokens keep theirs. What is dropped inside the
        language model follows the method instead.
    relevance : Relevance, optional
        Shared image-text space for methods that read ``relevance``, for example a `Companion`.
    budget_scope : {"image", "tile"}
        Where a model cuts an image into tiles, select from all of them together, or the whole budget from each by
        itself.
    processor : ProcessorMixin or PreTrainedTokenizerBase, optional
        Processor or tokenizer of the prompts, whose chat template tells what the user says in them. By default the one
        that `load` gave, or that lies with the weights in their folder or in the local cache of the hub. Without it,
        all text in front of the answer asks, with a warning. PaliGemma has no template and needs no processor.
    full_logits : bool, optional
        Whether the logits of ``model(...)`` have the columns of the prompt as it was given, (B, L, V), and so compare
        with the caller's labels, as metrics and label smoothing of a ``Trainer`` do; the column of a dropped token has
        the logits of the last kept column before it. False leaves them as short as the prompt was read, which saves
        memory. By default True, except of methods that drop tokens inside the language model, and with
        ``logits_to_keep``.
    keep_encodings : int
        Keep the encodings of so many calls until the block ends: a later call with the same images, and without
        gradients, selects anew for its question, but the vision tower does not run. For conversations that give all
        images again in each turn.

    Returns
    -------
    Pruning
        A context manager with ``report``. At its end it warns if images passed it by, or no call of the model came.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed or the model is not supported. Inside the block, calls raise ValueError where
        prompts, images and budget do not fit.

    Examples
    --------
    >>> with prune(model, IDSelection(budget=64)) as run:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=16)
    >>> run.report[0].after  # doctest: +SKIP
    64
    """
    return Pruning(model, method, positions, relevance, budget_scope, processor, full_logits, keep_encodings)
