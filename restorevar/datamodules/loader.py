"""Data loaders: one that can resume in the middle of an epoch, and one for fixed sets."""

import logging
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from restorevar.datamodules.batch import RestorationBatch, RestorationSample, collate
from restorevar.datamodules.sampler import EpochSampler
from restorevar.errors import UserError

__all__ = ["FixedSampler", "TrainingLoader", "fixed_loader"]

logger = logging.getLogger(__name__)

CHANGES = {"length": "number of samples", "seed": "seed", "tasks": "mixture of kinds and sources"}


class WorkerLoader(DataLoader[Any]):
    """A `DataLoader` whose worker processes use one OpenCV thread each, and whose user errors are one line.

    The number is set before the workers are forked: OpenCV hangs in a forked process that changes it after its parent
    has used several threads.
    """

    def __iter__(self) -> Any:
        threads = cv2.getNumThreads()
        if self.num_workers > 0:
            cv2.setNumThreads(1)
        try:
            batches = super().__iter__()
        finally:
            if self.num_workers > 0:
                cv2.setNumThreads(threads)
        return _with_short_errors(batches)


class TrainingLoader:
    """Batches of an epoch, with a position that Lightning saves and restores.

    It is no `DataLoader` on purpose: Lightning would put a sampler of its own into one. The position counts samples
    consumed over all processes by batches handed out, whatever the workers have prefetched beyond them.

    Args:
        dataset: Makes a sample from a `Draw`; sees no epoch and no rank.
        sampler: The order of the draws.
        num_workers: Worker processes; they live until `shutdown`.
        pin_memory: Whether batches go to page-locked memory.
        in_flight: How many of the batches handed out are not trained on yet; not counted as consumed.
        on_load: Called after a position has been restored.
    """

    def __init__(
        self,
        dataset: Dataset[RestorationSample],
        sampler: EpochSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
        in_flight: Callable[[], int] | None = None,
        on_load: Callable[["TrainingLoader"], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        # Lightning looks for `batch_sampler.sampler.set_epoch`; a `sampler` attribute would make overfit_batches
        # replace it
        self.batch_sampler = BatchSampler(sampler, sampler.batch_size, drop_last=True)  # type: ignore[arg-type]  # draws
        self.epoch_sampler = sampler
        self._pin_memory = pin_memory
        self._in_flight, self._on_load = in_flight, on_load
        self._inner: DataLoader[Any] | None = None
        self._handed_out, self._epoch = 0, sampler.epoch

    @property
    def batch_size(self) -> int:
        """Samples in a batch of this process."""
        return self.epoch_sampler.batch_size

    def __len__(self) -> int:
        return self.epoch_sampler.batches

    def __iter__(self) -> Iterator[RestorationBatch]:
        # a generator: Lightning creates iterators before it sets the epoch
        self._handed_out, self._epoch = 0, self.epoch_sampler.epoch
        if self._inner is None:
            self._inner = WorkerLoader(
                self.dataset,
                batch_sampler=self.batch_sampler,
                num_workers=self.num_workers,
                collate_fn=collate,
                pin_memory=self._pin_memory,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=_leave_signals_to_the_run,
            )
        for batch in self._inner:
            self._handed_out += 1
            yield batch

    @property
    def consumed(self) -> int:
        """Samples of the current epoch trained on, over all processes."""
        if self._epoch != self.epoch_sampler.epoch:  # another epoch has been set and not begun
            return 0
        batches = self._handed_out - (self._in_flight() if self._in_flight is not None else 0)
        return self.epoch_sampler.start + max(batches, 0) * self.epoch_sampler.step

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in: plain integers, the same on every process."""
        return {"epoch": self.epoch_sampler.epoch, "consumed": self.consumed, **self._order()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start at a saved position, taken by any number of processes.

        Warns if the order of samples that it is a position in was another; older checkpoints do not tell.
        """
        changed = [name for name, value in self._order().items() if state.get(name, value) != value]
        if changed and self.epoch_sampler.rank == 0:
            logger.warning(
                "the training data or their seed are not those of the checkpoint (%s): samples of its epoch may come"
                " twice or not at all",
                ", ".join(f"another {CHANGES[name]}" for name in changed),
            )
        self.epoch_sampler.set_epoch(int(state["epoch"]))
        self.epoch_sampler.start = min(int(state["consumed"]), self.epoch_sampler.length)
        self._handed_out, self._epoch = 0, self.epoch_sampler.epoch
        if self._on_load is not None:
            self._on_load(self)

    def _order(self) -> dict[str, int]:
        """What fixes the order of the samples, under the names of `CHANGES`."""
        sampler = self.epoch_sampler
        return {"length": sampler.length, "seed": sampler.seed, "tasks": zlib.crc32(repr(sampler.tasks).encode())}

    def shutdown(self) -> None:
        """Ends the worker processes."""
        self._inner = None


class FixedSampler(DistributedSampler[int]):
    """A process's part of a fixed set, in order.

    A `DistributedSampler` in name, so that Lightning does not put one of its own over it, which would repeat samples.

    Args:
        length: Samples of the whole set.
        rank: This process.
        world_size: Number of processes.
        equal: Repeat samples so that every process has equally many. For sharded models only, which wait for each
            other at every forward; elsewhere each sample is seen once, unless there are fewer than processes: then
            some are repeated too, as Lightning refuses a process without any.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1, equal: bool = False) -> None:
        super().__init__(range(length), world_size, rank, shuffle=False)  # type: ignore[arg-type]  # only its length
        count = -(-length // world_size) * world_size if equal or length < world_size else length
        self._indices = [index % length for index in range(rank, count, world_size)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def fixed_loader(
    dataset: Dataset[RestorationSample],
    batch_size: int,
    num_workers: int,
    sampler: FixedSampler,
    pin_memory: bool = False,
) -> DataLoader[RestorationSample]:
    """A loader of a process's part of a fixed set.

    Args:
        dataset: The set.
        batch_size: Samples in a batch.
        num_workers: Worker processes.
        sampler: The process's part.
        pin_memory: Whether batches go to page-locked memory.

    Returns:
        The loader.
    """
    return WorkerLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """SLURM signals all processes of a step; a worker that died of it would end the run before it has been saved.

    SIGTERM of the run itself still ends a worker. A thread waits for it, because only waiting tells who sent it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux, and so wherever there is SLURM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _with_short_errors(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except UserError as error:
        raise UserError(_last_line(error)) from None


def _last_line(error: UserError) -> str:
    """A worker's error without the traceback that torch puts before it."""
    text = str(error)
    marker = f"{UserError.__name__}: "
    return text.rpartition(marker)[2].strip() if "Original Traceback" in text else text
