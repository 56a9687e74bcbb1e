"""Load models and processors from a hub or a folder, or build models of published sizes with random weights."""

from idsel_core.loading.hub import load
from idsel_core.loading.random_models import build_random, list_architectures

__all__ = ["build_random", "list_architectures", "load"]
