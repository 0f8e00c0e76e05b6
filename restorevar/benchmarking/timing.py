"""Interleaved timings and peak memory."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from restorevar.memory import return_freed_memory

__all__ = ["Measurement", "available_memory", "interleave", "peak_memory", "total_memory"]


@dataclass
class Measurement:
    """Repeated timings of one thing.

    Attributes:
        seconds: One value a repeat.
    """

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest over smallest value."""
        return max(self.seconds) / min(self.seconds)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, Measurement]:
    """Times several calls in turns (A B C, A B C ...), so that a machine that slows down does so for all of them.

    Args:
        calls: What to time, by name.
        repeats: Rounds.
        device: Where they compute; waited for before the clock is read.
        warm_up: Rounds before the first that counts.
    """
    measurements = {name: Measurement() for name in calls}
    with torch.no_grad():
        for repeat in range(-warm_up, repeats):
            for name, call in calls.items():
                synchronize(device)
                began = time.perf_counter()
                call()
                synchronize(device)
                if repeat >= 0:
                    measurements[name].seconds.append(time.perf_counter() - began)
    return measurements


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Highest memory in bytes during a call: resident on CPUs, allocated on GPUs; None where it cannot be read."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return_freed_memory()
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # the kernel forgets the peak so far
    except OSError:
        return None
    call()
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) * 1024 if found else None


def _meminfo(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def total_memory(device: torch.device) -> int | None:
    """Memory of the device in bytes; None where it cannot be read."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return _meminfo("MemTotal")


def available_memory(device: torch.device) -> int | None:
    """Memory in bytes that may still be taken: up to 80 % of the device's in all; None where it cannot be read."""
    total = total_memory(device)
    if total is None:
        return None
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _meminfo("MemAvailable") or 0
    return max(free - total // 5, 0)
