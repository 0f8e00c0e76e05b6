"""How far a run is, how fast it goes and how long it will take: a bar in a terminal, lines in a log file."""

import logging
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

__all__ = ["Rate", "TrainingProgress", "duration"]

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `12 min`, `3 h 05 min` or `2 d 4 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


class Rate:
    """Batches a second: lately, and since the start with validation and all.

    Args:
        window: Batches that count as lately.
    """

    def __init__(self, window: int = 50) -> None:
        self._ends: deque[float] = deque(maxlen=window + 1)
        self._first: float | None = None
        self._batches = 0

    def pause(self) -> None:
        """Something else than training begins; the time until the next batch end is no batch's time."""
        self._ends.clear()

    def batch_end(self, now: float) -> None:
        """Counts a batch that ended at `now` seconds."""
        if self._first is None:
            self._first = now
        else:
            self._batches += 1
        self._ends.append(now)

    @property
    def lately(self) -> float | None:
        """Batches a second over the window; None before two batches."""
        if len(self._ends) < 2:
            return None
        return (len(self._ends) - 1) / max(self._ends[-1] - self._ends[0], 1e-9)

    def seconds_for(self, batches: float, now: float) -> float | None:
        """How long so many batches take at the pace since the start; None before two batches."""
        if self._first is None or self._batches == 0:
            return None
        return batches * (now - self._first) / self._batches


class SpeedColumn(ProgressColumn):
    """Images a second and the time that the whole run has left."""

    def __init__(self, owner: "TrainingProgress") -> None:
        super().__init__()
        self._owner = owner

    def render(self, task: Task) -> Text:
        """The text for the bar of training; nothing for other bars."""
        return Text(self._owner.speed() if task.id == self._owner.train_progress_bar_id else "", style="dim")


class TrainingProgress(RichProgressBar):
    """Rich bar with images a second and the time left; without a terminal, a line now and then in the log.

    Args:
        refresh_rate: Redraws a second.
        every_n_steps: Steps between updates of the numbers beside the bar; reading them waits for the GPU.
        log_minutes: Minutes between lines where there is no terminal.
    """

    def __init__(self, refresh_rate: int = 4, every_n_steps: int = 10, log_minutes: float = 1.0) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.every_n_steps, self.log_minutes = every_n_steps, log_minutes
        self._rate = Rate()
        self._shown: dict[str, Any] = {}
        self._logged = 0.0
        self._images = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turns the bar off where there is no terminal."""
        from rich import get_console

        super().setup(trainer, pl_module, stage)
        if not get_console().is_terminal:
            self.disable()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's columns with our speed in the place of its batches a second."""
        return [*super().configure_columns(trainer)[:-1], SpeedColumn(self)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar; fetched every so many steps only."""
        if not self._shown or trainer.global_step % self.every_n_steps == 0 or not trainer.training:
            self._shown = {
                name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"
            }
        return self._shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._rate = Rate()
        self._logged = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, draws, and writes a line if there is no terminal and it is time."""
        now = time.monotonic()
        self._rate.batch_end(now)
        self._images = len(batch["degraded"]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.is_disabled and trainer.is_global_zero and now - self._logged >= 60 * self.log_minutes:
            self._logged = now
            loss = trainer.callback_metrics.get("train/loss")
            shown = [f"loss {float(loss):.4f}" if isinstance(loss, torch.Tensor) else "", self.speed()]
            logger.info(
                "epoch %d, step %d of %d: %s",
                trainer.current_epoch,
                trainer.global_step,
                trainer.estimated_stepping_batches,
                ", ".join(filter(None, shown)),
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_test_start(trainer, pl_module)
        self._rate = Rate()
        self._logged = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws, and writes a line if there is no terminal and it is time."""
        now = time.monotonic()
        self._rate.batch_end(now)
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self.is_disabled and trainer.is_global_zero and now - self._logged >= 60 * self.log_minutes:
            self._logged = now
            done, total = batch_idx + 1, int(trainer.num_test_batches[dataloader_idx])
            left = self._rate.seconds_for(total - done, now)
            logger.info("tested %d of %d%s", done, total, "" if left is None else f", {duration(left)} left")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves validation out of the speed."""
        super().on_validation_start(trainer, pl_module)
        self._rate.pause()

    def speed(self) -> str:
        """Such as `52.1 images/s, 3 h 05 min left`; empty before two batches."""
        lately = self._rate.lately
        trainer = self.trainer
        steps_left = trainer.estimated_stepping_batches - trainer.global_step
        left = self._rate.seconds_for(steps_left * trainer.accumulate_grad_batches, time.monotonic())
        if lately is None or left is None:
            return ""
        return f"{lately * self._images:.3g} images/s, {duration(left)} left"
