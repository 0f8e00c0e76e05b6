"""Interleaved timings and peak memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from restorevar import memory

__all__ = ["Measurement", "available_memory", "interleave", "peak_memory"]


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


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


NameT = TypeVar("NameT", str, tuple[str, str])


def interleave(
    calls: Mapping[NameT, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[NameT, Measurement]:
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
    """:func:`restorevar.memory.peak_memory` of a call alone, without what awaits collection."""
    gc.collect()
    return memory.peak_memory(call, device)


def available_memory(device: torch.device) -> int | None:
    """Memory in bytes that may still be taken: up to 80 % of the device's in all; None where it cannot be read."""
    total, free = memory.total_memory(device), memory.free_memory(device)
    if total is None or free is None:
        return None
    return max(free - total // 5, 0)
