"""How much memory a device has left, and how running out of it shows."""

from __future__ import annotations

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device, what torch keeps in reserve there included."""
    if device.type == "cuda":
        in_reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + in_reserve
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this because a device, or the machine, has no memory left."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def give_back() -> None:
    """Hand the memory that torch keeps in reserve back to the devices: what is left of it lies in pieces of the wrong size."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
