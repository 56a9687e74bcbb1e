"""Which processor belongs to a model, and its tokenizer."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import AutoProcessor, AutoTokenizer


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, which may be one itself."""
    return getattr(processor, "tokenizer", processor)


def special_ids(processor: Any) -> set[int]:
    """Return the special tokens of a processor or tokenizer, but for unknown words."""
    tokenizer = tokenizer_of(processor)
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


_PROCESSORS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Processors by model, None for a model that has none here."""
_LOOKING = threading.RLock()


def remember_processor(model: nn.Module, processor: Any) -> None:
    """Let `processor_of` know the processor of a model."""
    _PROCESSORS[model] = processor


def processor_of(model: Any) -> Any:
    """Return the processor, or the tokenizer, of a model; None if it is not known.

    It is the one that `remember_processor` was told, or lies with the weights in their folder or in the local cache of
    the hub. Nothing is downloaded, and no code of a checkpoint is run.
    """
    with _LOOKING:
        if model not in _PROCESSORS:
            _PROCESSORS[model] = _read_processor(model)
        return _PROCESSORS[model]


def _read_processor(model: Any) -> Any:
    name = getattr(model, "name_or_path", None) or getattr(model.config, "_name_or_path", None)
    if not name or (os.sep in str(name) and str(name).count("/") > 1 and not Path(name).is_dir()):
        return None
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not Path(name).is_dir() and getattr(model.config, "_commit_hash", None):
        source["revision"] = model.config._commit_hash
    for read in (AutoProcessor, AutoTokenizer):
        # A processor may need a package that is missing, where its tokenizer does not; failing means not known.
        with suppress(Exception):
            found: Any = read.from_pretrained(name, **source)
            if hasattr(tokenizer_of(found), "all_special_ids"):
                return found
    return None
