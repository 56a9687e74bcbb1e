"""Which devices torch can use here, and its types of numbers by name."""

import torch


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or that is not there.

    Raises
    ------
    ValueError
        If torch can use no such device.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is unknown; allowed are cpu, cuda, cuda:0, cuda:1, ...") from error
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch sees no GPU on this machine; use device: cpu")
        count = torch.cuda.device_count()
        if (wanted.index or 0) >= count:
            raise ValueError(f"device {device!r} was asked for, but torch sees {count} GPUs on this machine")
    elif wanted.type == "meta":
        raise ValueError("device 'meta' holds no numbers, so nothing can be computed on it; use cpu or cuda")


def dtype_named(name: str) -> torch.dtype:
    """Return a type of numbers by the name that torch has for it.

    Raises
    ------
    ValueError
        If torch has no such type.
    """
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; for example float16, bfloat16, float32")
    return found


def multiplies_halves(device: torch.device) -> bool:
    """Tell whether nothing speaks against products of bfloat16 and float16 on a device.

    On processors of the x86 family without AVX-512 they take several times as long as those of float32.
    """
    known: dict[str, object] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return device.type != "cpu" or known.get("architecture") != "x86_64" or bool(known.get("avx512_f", True))
