"""Run notebooks and sweeps of them."""
