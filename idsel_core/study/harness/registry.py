"""The names of the models that this package adds to lmms-eval, and where the harness finds their classes.

Nothing of the harness is imported before it asks, because it asks while it is being imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

HARNESS: Final = "0.7.3"
"""The version of lmms-eval that this code was written for: it relies on more than the harness promises."""

PREFIX: Final = "idsel_"
GENERIC: Final = "generic"

WRAPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "llava_hf": ("llava", "llava_next", "llava_onevision"),
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "qwen3_vl": ("qwen3_vl",),
    "internvl_hf": ("internvl",),
    "gemma3": ("gemma3",),
    "video_llava": ("video_llava",),
    "qwen2_audio": ("qwen2_audio",),
    GENERIC: ("smolvlm", "idefics3", "paligemma", "llava_next_video"),
}
"""The harness's models that are wrapped, and the model types that each is the usual one for."""

CHAT_ALONE: Final = ("llava_hf",)
"""Models of which ``--force_simple`` would drop the question, with a chat template that reads lists of content."""


def manifests() -> list[Any]:
    """Return what the entry point hands to the harness: where the classes of each model are."""
    from lmms_eval.models.registry_v2 import ModelManifest

    found = []
    for name in WRAPPED:
        paths = {
            kind: f"idsel_core.study.harness.models.{kind}__{name}"
            for kind in ("simple", "chat")
            if class_path(kind, name)
        }
        found.append(ModelManifest(PREFIX + name, paths.get("simple"), paths.get("chat")))
    return found


def class_path(kind: str, name: str) -> str | None:
    """Return the dotted path of a class that is wrapped, None where there is none of this kind."""
    from lmms_eval.models import AVAILABLE_CHAT_TEMPLATE_MODELS, AVAILABLE_SIMPLE_MODELS, _build_class_path

    if name == GENERIC:
        return "idsel_core.study.harness.generic.Generic" if kind == "chat" else None
    if kind == "simple":
        classes = AVAILABLE_SIMPLE_MODELS if name not in CHAT_ALONE else {}
    else:
        classes = AVAILABLE_CHAT_TEMPLATE_MODELS
    return _build_class_path(name, kind, classes[name]) if name in classes else None


def native_name(name: Any) -> Any:
    """Return the name of the harness's own model that ``idsel_<name>`` wraps; anything else as it is."""
    native = name.removeprefix(PREFIX) if isinstance(name, str) else name
    return native if native in WRAPPED else name


def check_version() -> None:
    """Refuse another version of lmms-eval than the one that this code was written for.

    Raises
    ------
    ImportError
        If another one is installed.
    """
    if version("lmms-eval") != HARNESS:
        raise ImportError(f"this needs lmms-eval {HARNESS}, not {version('lmms-eval')}: pip install 'idsel_core[eval]'")
