"""Lease one GPU of this machine to a command: its number goes into CUDA_VISIBLE_DEVICES until the command ends.

Where Slurm gave one GPU, and where there is none, the command runs as it is; several that Slurm gave to one job are
leased within it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def visible() -> list[str]:
    """Return the numbers of the GPUs that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [number for number in listed.split(",") if number]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def lease(numbers: Sequence[str], folder: Path, pause: float = 1.0) -> tuple[str, int]:
    """Wait for a GPU that no other lease holds.

    Parameters
    ----------
    numbers : sequence of str
        The GPUs to choose from.
    folder : Path
        Where the lock files are, one a GPU; the same for all that share the machine.
    pause : float
        Seconds between two looks.

    Returns
    -------
    tuple
        The GPU's number, and the descriptor of its locked file: the lease ends when all copies of it are closed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in numbers:
            descriptor = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, descriptor
            except BlockingIOError:
                os.close(descriptor)
        time.sleep(pause)


def run_with_gpu(command: Sequence[str], locks: Path | None = None) -> None:
    """Become a command, with a GPU leased where there are several.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    locks : Path, optional
        Folder of the lock files; by default one of this user in the temporary folder.
    """
    numbers, allocation = visible(), os.environ.get("SLURM_JOB_ID")
    if len(numbers) > (1 if allocation else 0):
        folder = locks or Path(tempfile.gettempdir(), f"idsel-gpus-{os.getuid()}")
        # Slurm may number the GPUs of each of its jobs from 0.
        folder = folder / allocation if allocation else folder
        number, descriptor = lease(numbers, folder)
        os.environ["CUDA_VISIBLE_DEVICES"] = number
        os.set_inheritable(descriptor, True)
    os.execvp(command[0], list(command))
