"""Evaluate through lmms-eval: its models under `prune`, its tasks and its scoring, rows in our store."""
