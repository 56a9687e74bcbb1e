"""Selection methods by name; one file holds one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from idsel_core.hints import did_you_mean
from idsel_core.methods._shared.base import Method, take_best
from idsel_core.methods._shared.drop_plan import resolve_layers
from idsel_core.methods._shared.in_llm import Choice, InLLM, LayerTokens, drops_inside, most_attended
from idsel_core.methods.adaptive import AdaptiveBudget
from idsel_core.methods.cdpruner import CDPruner
from idsel_core.methods.dart import DART
from idsel_core.methods.diversity import DiversityOnly
from idsel_core.methods.divprune import DivPrune
from idsel_core.methods.downsample import Downsample
from idsel_core.methods.dycoke import DyCoke
from idsel_core.methods.evs import EVS
from idsel_core.methods.fastervlm import FasterVLM
from idsel_core.methods.fastv import FastV
from idsel_core.methods.fastvid import FastVID
from idsel_core.methods.hiprune import HiPrune
from idsel_core.methods.hired import HiRED
from idsel_core.methods.holitom import HoliTom
from idsel_core.methods.holov import HoloV
from idsel_core.methods.idselection import IDSelection
from idsel_core.methods.idselection_inside import IDSelectionInside
from idsel_core.methods.mmr import MMR
from idsel_core.methods.mmtok import MMTok
from idsel_core.methods.prumergeplus import PruMergePlus
from idsel_core.methods.prunesid import PruneSID
from idsel_core.methods.pyramiddrop import PyramidDrop
from idsel_core.methods.random_tokens import Random
from idsel_core.methods.scope import SCOPE
from idsel_core.methods.sparsevlm import SparseVLM
from idsel_core.methods.tome import ToMe
from idsel_core.methods.topk import TopK
from idsel_core.methods.trim import TRIM
from idsel_core.methods.uniform import UniformGrid
from idsel_core.methods.vidcom2 import VidCom2
from idsel_core.methods.visionzip import VisionZip
from idsel_core.methods.vispruner import VisPruner
from idsel_core.methods.vscan import VScan

__all__ = [
    "DART",
    "EVS",
    "METHODS",
    "MMR",
    "SCOPE",
    "TRIM",
    "AdaptiveBudget",
    "CDPruner",
    "Choice",
    "DivPrune",
    "DiversityOnly",
    "Downsample",
    "DyCoke",
    "FastV",
    "FastVID",
    "FasterVLM",
    "HiPrune",
    "HiRED",
    "HoliTom",
    "HoloV",
    "IDSelection",
    "IDSelectionInside",
    "InLLM",
    "LayerTokens",
    "MMTok",
    "Method",
    "PruMergePlus",
    "PruneSID",
    "PyramidDrop",
    "Random",
    "SparseVLM",
    "ToMe",
    "TopK",
    "UniformGrid",
    "VScan",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "drops_inside",
    "get_method",
    "list_methods",
    "most_attended",
    "resolve_layers",
    "take_best",
]

METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (
        IDSelection,
        TopK,
        DiversityOnly,
        Random,
        UniformGrid,
        Downsample,
        FasterVLM,
        VisPruner,
        HiRED,
        HiPrune,
        DivPrune,
        CDPruner,
        SCOPE,
        MMTok,
        MMR,
        HoloV,
        PruneSID,
        AdaptiveBudget,
        TRIM,
        VisionZip,
        PruMergePlus,
        ToMe,
        VScan,
        EVS,
        VidCom2,
        IDSelectionInside,
        DyCoke,
        FastVID,
        HoliTom,
        FastV,
        SparseVLM,
        PyramidDrop,
        DART,
    )
}


def list_methods() -> tuple[str, ...]:
    """Return the names of all methods, as `get_method` takes them."""
    return tuple(METHODS)


def get_method(name: str, **knobs: Any) -> Method:
    """Build a method by its name.

    Parameters
    ----------
    name : str
        One of `list_methods`.
    knobs
        Fields of the method. Every method has ``budget``.

    Raises
    ------
    ValueError
        If the name or a knob is unknown; the message lists the known names.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}")
    known = [field.name for field in fields(METHODS[name])]
    for knob in knobs:
        if knob not in known:
            raise ValueError(f"{name} has no knob {knob!r}{did_you_mean(knob, known)}; known: {', '.join(known)}")
    return METHODS[name](**knobs)
