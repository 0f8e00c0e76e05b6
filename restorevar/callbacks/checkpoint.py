"""The newest checkpoint of a run, safe against being killed at any moment."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from restorevar.errors import UserError
from restorevar.files import atomic_write, discard, publish, sync

__all__ = ["AtomicCheckpointIO", "NewestCheckpoint", "is_step_end"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it and renames it over the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint file.

        Args:
            checkpoint: What to write.
            path: The file; an address like `s3://...` is left to Lightning.
            storage_options: Not supported.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        if path.is_dir():  # of a sharded run before
            part = path.with_name(f".{path.name}.part")
            torch.save(checkpoint, part)
            sync(part)
            publish(part, path)
            return
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)
        sync(path.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint file, tensors and plain values only: a checkpoint from a stranger runs no code.

        Args:
            path: The file.
            map_location: See `torch.load`.
            weights_only: None means True.
        """
        return super().load_checkpoint(path, map_location, weights_only is not False)


class NewestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt` of the run's folder up to date; `--ckpt_path last` finds it.

    It holds everything that is needed to go on as if nothing had happened: weights, averages, optimizer, schedule, and
    the position in the data. It is replaced at a stated interval and after the last step, also where the run is stopped
    before its planned end (`max_time`, `EarlyStopping`).

    Args:
        every_n_steps: Optimizer steps between saves; takes the place of `every_minutes`.
        every_minutes: Minutes between saves.
        folder: Where to; `checkpoints` in the run's folder if not given.
    """

    def __init__(
        self, every_n_steps: int | None = None, every_minutes: float = 10.0, folder: str | None = None
    ) -> None:
        super().__init__(
            dirpath=folder,
            filename=self.CHECKPOINT_NAME_LAST,
            save_top_k=1,
            every_n_train_steps=every_n_steps,
            train_time_interval=timedelta(minutes=every_minutes) if every_n_steps is None else None,
            enable_version_counter=False,
        )
        self._last_step = -1

    @property
    def path(self) -> Path:
        """The checkpoint; known from `setup` on."""
        return Path(self.format_checkpoint_name({}))

    def refuse_used_folder(self, trainer: Trainer) -> None:
        """Stops a run that would begin anew where another one has its checkpoint; a trial writes none.

        For whoever calls `fit` and knows that nothing is resumed: Lightning (2.6) tells callbacks only after `setup`,
        when the settings of the run before have been written over.

        Args:
            trainer: Before `fit`.

        Raises:
            UserError: `--ckpt_path last` would find a checkpoint.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if found := self._find_last_checkpoints(trainer):
            raise UserError(
                f"{Path(min(found)).parent} holds a run already; add --ckpt_path last to go on with it, or give another"
                " trainer.default_root_dir"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the Trainer write files safely, and clears away what a killed run has left half-written."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        strategy = trainer.strategy
        if not isinstance(strategy.checkpoint_io, AtomicCheckpointIO):
            if type(strategy.checkpoint_io) is not TorchCheckpointIO:
                raise UserError(
                    f"found the checkpoint plugin {type(strategy.checkpoint_io).__name__}; the newest checkpoint needs"
                    " its own: remove the plugin from trainer.plugins"
                )
            strategy.checkpoint_io = AtomicCheckpointIO()
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # it may run beside the run itself
        if trainer.is_global_zero and not is_trial and self.path.parent.is_dir():
            for left_over in self.path.parent.glob(f".{self.path.stem}.*"):
                if left_over.is_dir():
                    shutil.rmtree(left_over, ignore_errors=True)
                else:
                    discard(left_over)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folder: a run that has it was not refused before its first step."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, and after the last step of the run; never between two accumulated batches.

        A trial (`fast_dev_run`) saves nothing: the folder may be that of a real run.
        """
        if trainer.fast_dev_run or not is_step_end(trainer, batch_idx):  # type: ignore[attr-defined]
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step >= trainer.estimated_stepping_batches or trainer.should_stop:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where a validation ends the run, as `EarlyStopping` does."""
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and trainer.state.fn == "fit":
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where the end of an epoch ends the run."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.should_stop:
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        """Once a step: whatever stops a run is seen by several hooks."""
        if trainer.fast_dev_run or self._last_step == trainer.global_step:  # type: ignore[attr-defined]
            return
        self._last_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Marks an epoch as done whose last batch is.

        Saved at its last batch, an epoch counts as unfinished; Lightning (2.6) then forgets to count the next one, and
        a second resume, in the middle of that one, begins it anew. Runs that are bounded by steps are not affected.
        """
        if not (trainer.is_last_batch and trainer.training and trainer.max_steps == -1):
            return
        loop = checkpoint["loops"]["fit_loop"]
        for count in (*loop["epoch_progress"].values(), *loop["epoch_loop.batch_progress"].values()):
            if isinstance(count, dict):  # `total` and `current`
                count.update(started=count["ready"], processed=count["ready"])
        for count in ("total", "current"):
            loop["epoch_loop.batch_progress"][count]["completed"] = loop["epoch_loop.batch_progress"][count]["ready"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # the loggers' clock


def is_step_end(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped in this batch: gradients that are still being accumulated are in no checkpoint."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
