"""In which order an epoch visits the samples, the same on every process."""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from restorevar.errors import UserError

__all__ = ["Draw", "EpochSampler", "Task", "stratified_order"]


class Draw(NamedTuple):
    """One sample to make; all its randomness comes from (seed, epoch, position)."""

    epoch: int
    position: int
    pool: int
    record: int


class Task(NamedTuple):
    """Samples that share one quota, usually all those of one kind of degradation.

    Attributes:
        name: Name of the task, the key of its shuffling.
        share: Its part of the samples in (0, 1]; the shares of all tasks sum to 1.
        pools: Index of each pool of records that it draws from.
        counts: How many records each pool has, repeats included; a pool's record r stands for record r modulo `sizes`.
        sizes: How many different records each pool has.
    """

    name: str
    share: float
    pools: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]


def stratified_order(shares: Sequence[float], length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Which task each position draws from, so that every prefix has each task's share to within one sample.

    The chairman assignment of Tijdeman (1980), ties broken at random: of the tasks that are due, the one whose deadline
    comes first. With k tasks no prefix is off by more than 1 - 1 / (2 k - 2).

    Args:
        shares: Part of each task; they sum to 1.
        length: Number of positions.
        generator: Breaks ties.

    Returns:
        (length,) task index.
    """
    tasks = len(shares)
    if tasks == 1:
        return np.zeros(length, np.int64)
    margin = 1 / (2 * tasks - 2)
    ties = generator.random((length, tasks)).tolist()
    taken = [0] * tasks
    order = np.empty(length, np.int64)
    everyone = range(tasks)
    for position in range(length):
        tie = ties[position]
        best, best_key = -1, (math.inf, math.inf)
        for task in everyone:
            due = shares[task] * (position + 1) - taken[task]
            if due >= margin - 1e-9:
                # rounded, so that equal shares are equal deadlines
                key = (round((1 - margin - due) / shares[task], 6), tie[task])
                if key < best_key:
                    best, best_key = task, key
        order[position] = best
        taken[best] += 1
    return order


class EpochSampler:
    """Draws of one process, in batches that all processes take in step.

    The order of an epoch is a function of (seed, epoch) alone. Process r of W takes every W-th draw from r on, so the
    processes together take the next W x batch size draws of the epoch at each step. A position in the epoch is
    therefore one number, the draws consumed over all processes, and another number of processes can carry on from it.

    A task with fewer records than its quota goes through them in passes, each reshuffled; one with more goes on in the
    next epoch where it stopped in this one. Draws left over at the end of an epoch (less than a batch a process) are
    dropped.

    Args:
        tasks: The tasks.
        length: Draws in an epoch, over all processes.
        batch_size: Samples in a batch of one process.
        seed: Fixes everything.
        rank: This process.
        world_size: Number of processes.

    Raises:
        UserError: An epoch is shorter than one batch of all processes.
    """

    def __init__(
        self, tasks: Sequence[Task], length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.tasks, self.length, self.seed = list(tasks), length, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.epoch = 0
        self.start = 0  # draws of this epoch consumed before the next iteration begins
        self._cached: tuple[int, NDArray[np.int64]] | None = None
        if length < self.step:
            raise UserError(
                f"an epoch has {length} samples, fewer than the {self.step} of one step ({batch_size} a batch x"
                f" {world_size} processes); lower batch_size, add photos or raise `repeat` of a source"
            )

    @property
    def step(self) -> int:
        """Draws that all processes consume together at each batch."""
        return self.batch_size * self.world_size

    @property
    def batches(self) -> int:
        """Batches of a whole epoch, the same on every process."""
        return self.length // self.step

    @property
    def batches_left(self) -> int:
        """Batches from `start` to the end of the epoch."""
        return (self.length - self.start) // self.step

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; another one than before begins at its beginning."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All draws of an epoch, over all processes: (length, 2) of pool and record."""
        if self._cached is not None and self._cached[0] == epoch:
            return self._cached[1]
        shares = [task.share for task in self.tasks]
        of_task = stratified_order(shares, self.length, np.random.default_rng([self.seed, epoch]))
        draws = np.empty((self.length, 2), np.int64)
        for index, task in enumerate(self.tasks):
            positions = np.flatnonzero(of_task == index)
            start = epoch * math.ceil(task.share * self.length - 1e-9)
            entries = self._entries(task, start, len(positions))
            bounds = np.cumsum((0, *task.counts))
            member = np.searchsorted(bounds, entries, side="right") - 1
            draws[positions, 0] = np.asarray(task.pools)[member]
            draws[positions, 1] = (entries - bounds[member]) % np.asarray(task.sizes)[member]
        self._cached = (epoch, draws)
        return draws

    def _entries(self, task: Task, start: int, count: int) -> NDArray[np.int64]:
        """`count` entries from `start` on of the endless sequence of the task's reshuffled passes."""
        total = sum(task.counts)
        key = zlib.crc32(task.name.encode())  # the same whichever other tasks there are
        first, last = start // total, (start + max(count, 1) - 1) // total
        passes = [
            np.random.default_rng([self.seed, key, number]).permutation(total) for number in range(first, last + 1)
        ]
        offset = start - first * total
        return np.concatenate(passes)[offset : offset + count]

    def __iter__(self) -> Iterator[Draw]:
        """This process's draws from `start` on, whole batches only."""
        draws, epoch = self.order(self.epoch), self.epoch
        first, end = self.start, self.start + self.batches_left * self.step
        for position in range(first + self.rank, end, self.world_size):
            yield Draw(epoch, position, int(draws[position, 0]), int(draws[position, 1]))

    def __len__(self) -> int:
        """Draws of a whole epoch on one process; constant, since Lightning plans with it."""
        return self.batches * self.batch_size
