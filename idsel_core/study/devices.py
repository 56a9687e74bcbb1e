"""Which devices torch can use here."""

import torch


def check_device(device: str) -> None:
    """Refuse a GPU that is not there.

    Raises
    ------
    ValueError
        If torch can use no such device.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no GPU on this machine; use device: cpu")
