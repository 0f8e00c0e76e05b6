"""Leaving a run on a signal, with everything saved, and asking SLURM to start it again."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from restorevar.callbacks.checkpoint import NewestCheckpoint, is_step_end

__all__ = ["Preempted", "RequeueOnSignal", "leave"]

logger = logging.getLogger(__name__)


class Preempted(BaseException):
    """Raised on all processes once the checkpoint is written. No `Exception`, so that nothing swallows it.

    Attributes:
        signal_number: The signal that asked for it.
        checkpoint: Where the run can be taken up again.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"{signal.Signals(signal_number).name}: saved {checkpoint}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class RequeueOnSignal(Checkpoint):
    """Saves and leaves at the end of a step after a signal: `SIGUSR1` (to be started again) or `SIGTERM`.

    The handler only sets a flag. Processes are out of step when a signal arrives, and not all of them may get it: they
    agree at the end of a step, save together, and raise `Preempted`. Lightning's own handlers run collectives inside
    the handler, which can hang; they are switched off.

    Args:
        every_n_steps: With several processes, how often they ask each other; each time costs one small reduction.
    """

    # a Checkpoint, because Lightning runs those last: averages must have seen the step that is saved

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self._received = 0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switches Lightning's requeueing off: it writes `hpc_ckpt_N` files that later runs load unasked."""
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers, after Lightning has installed its own; not for a trial, which has nothing to save."""
        self._received = 0
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGUSR1, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received != signal.SIGTERM:  # it is never started again after that one
            self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks whether any process got a signal; if so, saves and leaves.

        Raises:
            Preempted: On all processes.
        """
        if not is_step_end(trainer, batch_idx):
            return
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps:
            return
        if number := self._asked(trainer):
            path = newest_path(trainer)
            trainer.save_checkpoint(path)  # ends with a barrier
            raise Preempted(number, path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves after the last validation, before another stage begins; what was trained is saved already.

        Raises:
            Preempted: On all processes.
        """
        if self._handlers and not trainer.interrupted and (number := self._asked(trainer)):
            raise Preempted(number, newest_path(trainer))

    def _asked(self, trainer: Trainer) -> int:
        """The signal that any process got, the same on all of them; 0 for none."""
        # one reduction a question in the usual case
        if not trainer.strategy.reduce_boolean_decision(self._received > 0, all=False):
            return 0
        terminated = trainer.strategy.reduce_boolean_decision(self._received == signal.SIGTERM, all=False)
        return signal.SIGTERM if terminated else signal.SIGUSR1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the handlers back."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts the handlers back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:  # else Lightning has put back those from before the run
                signal.signal(number, handler)
        self._handlers.clear()


def newest_path(trainer: Trainer) -> Path:
    """Where the run keeps its newest checkpoint."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, NewestCheckpoint):
            return callback.path
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def leave(preempted: Preempted) -> int:
    """Asks SLURM to start the job again if it sent `SIGUSR1`; called after `fit` has been left.

    Args:
        preempted: What was raised.

    Returns:
        Exit code of this process: 0 if the job is queued again, else 128 + the signal, so that no job that depends on
        this one takes it for finished.
    """
    logger.info("%s", preempted)
    code = 128 + preempted.signal_number
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID")
    if preempted.signal_number != signal.SIGUSR1 or job is None:
        return code
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return 0  # the first process asks for all
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = (result.stderr.strip() or f"exit code {result.returncode}") if result.returncode else ""
    except OSError as error:  # no SLURM inside a container
        problem = str(error)
    if problem:
        logger.error("job %s could not be requeued: %s", job, problem)
        return code
    logger.info("job %s is queued again", job)
    return 0
