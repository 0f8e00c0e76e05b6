import multiprocessing
import subprocess
import sys
import zlib
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from restorevar.datamodules.loader import FixedSampler, TrainingLoader, fixed_loader
from restorevar.datamodules.sampler import Draw, EpochSampler, Task
from restorevar.errors import UserError


class Positions(Dataset):
    """Samples that carry their position; one that is None raises."""

    def __init__(self, bad=None):
        self.bad = bad

    def __getitem__(self, draw):
        if draw.position == self.bad:
            raise UserError("file.png: damaged")
        image = torch.full((3, 1, 1), float(draw.position))
        return {"degraded": image, "clean": image, "kind": "rain", "dataset": "S", "path": str(draw.record)}


def loader_of(length=40, batch_size=4, workers=0, bad=None, rank=0, world_size=1):
    sampler = EpochSampler([Task("rain", 1.0, (0,), (length,), (length,))], length, batch_size, 0, rank, world_size)
    return TrainingLoader(Positions(bad), sampler, num_workers=workers)


def positions(batches):
    return [int(value) for batch in batches for value in batch["degraded"][:, 0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_position_counts_what_was_handed_out_not_what_was_prefetched(workers):
    loader = loader_of(workers=workers)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    order = {"length": 40, "seed": 0, "tasks": zlib.crc32(repr(loader.epoch_sampler.tasks).encode())}
    assert state == {"epoch": 0, "consumed": 12, **order}
    rest = positions(iterator)
    resumed = loader_of(workers=workers)
    resumed.load_state_dict(state)
    assert positions(resumed) == rest
    assert resumed.state_dict() == {"epoch": 0, "consumed": 40, **order}
    loader.shutdown()
    resumed.shutdown()


def test_workers_outlive_the_signals_that_all_processes_get():
    def send(name):  # as SLURM does: from a process that is not the run
        pids = [str(process.pid) for process in multiprocessing.active_children()]
        subprocess.run(["kill", f"-{name}", *pids], check=True)

    loader = loader_of(length=200, workers=2)
    batches = iter(loader)
    seen = positions([next(batches), next(batches)])  # each of the two workers has begun
    assert len(multiprocessing.active_children()) == 2
    for name in ("USR1", "TERM", "USR1", "TERM"):
        send(name)
        seen += positions([next(batches)])
    assert sorted(seen + positions(batches)) == list(range(200))
    workers = multiprocessing.active_children()
    for process in workers:
        process.terminate()
    for process in workers:
        process.join(20)
    assert [process.exitcode for process in workers] == [0, 0]
    loader.shutdown()


def test_a_program_ends_while_its_workers_live():
    program = (
        "from tests.datamodules.test_loader import loader_of\n"
        "loader = loader_of(length=200, workers=2)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "raise SystemExit(7)\n"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=100, check=False).returncode == 7


def test_the_next_epoch_begins_at_its_beginning():
    loader = loader_of()
    loader.load_state_dict({"epoch": 3, "consumed": 36})
    assert len(positions(loader)) == 4
    loader.batch_sampler.sampler.set_epoch(4)
    assert loader.state_dict() == {**loader_of().state_dict(), "epoch": 4, "consumed": 0}
    assert len(positions(loader)) == 40
    assert len(loader) == 10


def test_a_position_in_another_order_is_told_and_stays_in_the_epoch(caplog):
    state = loader_of().state_dict() | {"consumed": 36}
    loader_of().load_state_dict(state)
    loader_of(length=30).load_state_dict({"epoch": 0, "consumed": 4})  # of an older version: it does not tell
    loader_of(length=30, rank=1, world_size=2).load_state_dict(state)  # told by the first process
    assert not caplog.records
    shorter = loader_of(length=30)
    shorter.load_state_dict(state)
    assert shorter.consumed == 30
    assert shorter.epoch_sampler.batches_left == len(positions(shorter)) == 0
    (record,) = caplog.records
    assert "(another number of samples, another mixture of kinds and sources)" in record.message
    shorter.batch_sampler.sampler.set_epoch(1)
    assert len(positions(shorter)) == 28
    caplog.clear()
    loader_of().load_state_dict(state | {"seed": 1})
    assert "(another seed)" in caplog.text


def test_workers_give_the_same_batches():
    plain = [(batch["path"], batch["degraded"].tolist()) for batch in loader_of()]
    spread = loader_of(workers=2)
    assert [(batch["path"], batch["degraded"].tolist()) for batch in spread] == plain
    spread.batch_sampler.sampler.set_epoch(1)
    assert [batch["path"] for batch in spread] != [path for path, _ in plain], "epochs repeat each other"
    spread.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_one_line(workers):
    loader = loader_of(workers=workers, bad=17)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "file.png: damaged"


class Numbered(Positions):
    def __getitem__(self, index):
        return super().__getitem__(Draw(0, index, 0, index))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_fixed_set_is_one_line(workers):
    loader = fixed_loader(Numbered(3), 2, workers, FixedSampler(6))
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "file.png: damaged"
    loader = fixed_loader(Numbered(), 2, workers, FixedSampler(6))
    assert positions(loader) == positions(loader) == list(range(6))


def test_processes_share_a_fixed_set_without_overlap():
    parts = [list(FixedSampler(7, rank, 3)) for rank in range(3)]
    assert sorted(chain(*parts)) == list(range(7))
    equal = [list(FixedSampler(7, rank, 3, equal=True)) for rank in range(3)]
    assert {len(part) for part in equal} == {3}
    assert set(chain(*equal)) == set(range(7))
    few = [list(FixedSampler(2, rank, 3)) for rank in range(3)]
    assert all(few), "Lightning refuses a process without batches"


def test_workers_start_after_opencv_has_used_several_threads():
    threads = cv2.getNumThreads()
    cv2.GaussianBlur(np.zeros((3000, 3000, 3), np.float32), (31, 31), 5)  # starts the pool that a fork would break
    loader = loader_of(workers=2)
    assert len(list(loader)) == len(loader)
    assert cv2.getNumThreads() == threads
    loader.shutdown()
