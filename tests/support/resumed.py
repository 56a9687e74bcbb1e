"""A small run that tests kill and resume."""

from idsel_core.methods import get_method
from idsel_core.study.dataset import BLIND, FULL

METHODS = [FULL, BLIND, get_method("idselection", budget=16), get_method("random", budget=16, seed=3)]
BATCH = 5
