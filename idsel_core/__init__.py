"""ID-Selection and its peers: visual token selection for vision-language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idsel_core.architectures import build_random as build_random
    from idsel_core.architectures import list_architectures as list_architectures
    from idsel_core.backbones import ClipCompanion as ClipCompanion
    from idsel_core.backbones import Companion as Companion
    from idsel_core.backbones import adapter_for as adapter_for
    from idsel_core.loading import load as load
    from idsel_core.methods import DiversityOnly as DiversityOnly
    from idsel_core.methods import Downsample as Downsample
    from idsel_core.methods import IDSelection as IDSelection
    from idsel_core.methods import Random as Random
    from idsel_core.methods import TopK as TopK
    from idsel_core.methods import UniformGrid as UniformGrid
    from idsel_core.methods import get_method as get_method
    from idsel_core.methods import list_methods as list_methods
    from idsel_core.pruning import prune as prune
    from idsel_core.selection import Selection as Selection
    from idsel_core.selection import id_select as id_select
    from idsel_core.tokens import Unavailable as Unavailable
    from idsel_core.tokens import VisualTokens as VisualTokens

_HOME = {
    "architectures": ("build_random", "list_architectures"),
    "backbones": ("ClipCompanion", "Companion", "adapter_for"),
    "loading": ("load",),
    "methods": (
        "DiversityOnly",
        "Downsample",
        "IDSelection",
        "Random",
        "TopK",
        "UniformGrid",
        "get_method",
        "list_methods",
    ),
    "pruning": ("prune",),
    "selection": ("Selection", "id_select"),
    "tokens": ("Unavailable", "VisualTokens"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that importing the package needs neither torch nor transformers.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
