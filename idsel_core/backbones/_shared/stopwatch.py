"""Wall time of a block, GPU work included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """Measure the wall time of a block in milliseconds, including the work that it queues on a GPU."""
    times: list[float] = []

    def stamp() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    stamp()
    yield lambda: (times[1] - times[0]) * 1e3
    stamp()
