"""How this process takes memory from the system, and how much. Imports nothing heavy."""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "LARGE_PAGES",
    "free_memory",
    "keep_freed_memory",
    "peak_memory",
    "request_large_pages",
    "return_freed_memory",
    "total_memory",
]

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # the environment variable that PyTorch reads

# parameters of mallopt in the GNU C library (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1  # mallopt takes an int
STEP = 2**28

freed_memory_kept = False  # for the record of a benchmark


def request_large_pages() -> None:
    """Large pages for PyTorch's tensors on Linux, unless the environment says otherwise.

    To be called before the first tensor is made, when PyTorch looks. Fresh 4 KiB pages take a quarter of a
    convolution's time.
    """
    os.environ.setdefault(LARGE_PAGES, "1")


def keep_freed_memory() -> bool:
    """Lets the C library keep what the main thread's tensors free, for the next ones.

    By default it maps each large tensor anew and gives it back when it is freed, and the kernel fills every fresh page
    with zeros: a twelfth to a sixth of a restoration's time. For processes that restore photos and end. Memory is given
    back only from the end of the heap, beyond 2 GiB, so that in a training run of days, or a server, it could grow. Ask
    for large pages as well: freed chunks of small ones may miss the next tensor by a few bytes.

    Returns:
        Whether the C library is one that can do so (GNU's); else nothing is changed.
    """
    global freed_memory_kept
    library = _gnu_library()
    if library is not None:
        settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: STEP}
        freed_memory_kept = all(library.mallopt(name, value) for name, value in settings.items())
    return freed_memory_kept


def return_freed_memory() -> None:
    """Gives what is kept back to the system once, so that its figures for used and free memory are right."""
    library = _gnu_library()
    if library is not None:
        library.malloc_trim(0)


def peak_memory(call: Callable[[], Any], device: "torch.device") -> int | None:
    """Highest memory in bytes during a call: resident on CPUs, allocated on GPUs; None where it cannot be read."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # keeps what it has once taken
        call()
        torch.mps.synchronize()
        return int(torch.mps.driver_allocated_memory())
    return_freed_memory()
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # the kernel forgets the peak so far
    except OSError:
        call()
        return None
    call()
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) * 1024 if found else None


def total_memory(device: "torch.device") -> int | None:
    """Memory of the device in bytes, within a container's own limit; None where it cannot be read."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    sizes = [size for size in (_meminfo("MemTotal"), _control_group("max")) if size is not None]
    return min(sizes, default=None)


def free_memory(device: "torch.device") -> int | None:
    """Memory in bytes that could still be taken; None where it cannot be read."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    sizes = [size for size in (_meminfo("MemAvailable"),) if size is not None]
    limit, taken = _control_group("max"), _control_group("current")
    if limit is not None and taken is not None:
        sizes.append(limit - taken)
    return min(sizes, default=None)


def _control_group(name: str) -> int | None:
    """Bytes that a container may take (`max`) or has taken (`current`); None without a limit."""
    try:
        return int(Path(f"/sys/fs/cgroup/memory.{name}").read_text())
    except (OSError, ValueError):
        return None


def _meminfo(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _gnu_library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
