import platform
import subprocess
import sys

import pytest

from restorevar.cli import main

COMMON = """
import resource
from restorevar.memory import keep_freed_memory
{call}
import torch
torch.set_num_threads(1)
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Page faults of filling 64 MiB five times over, in a fresh process."""
    process = subprocess.run(
        [sys.executable, "-c", COMMON.format(call=call)], capture_output=True, check=True, text=True
    )
    return int(process.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_freed_memory_serves_the_next_tensor() -> None:
    assert faults("keep_freed_memory()") < 20 < 100 < faults("")  # large pages of 2 MiB would be 160


@pytest.mark.parametrize(("word", "kept"), [("restore", True), ("fit", False), ("pipeline", False)])
def test_commands_that_train_leave_the_heap_alone(word, kept, monkeypatch) -> None:
    module = sys.modules[main.__module__]
    called: list[bool] = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(module, "dispatch", lambda words: 0)
    assert main([word]) == 0
    assert bool(called) is kept
