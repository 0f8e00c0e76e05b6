"""How this process takes memory from the system. Imports nothing heavy."""

import ctypes
import os
import sys

__all__ = ["LARGE_PAGES", "keep_freed_memory", "request_large_pages", "return_freed_memory"]

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


def _gnu_library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
