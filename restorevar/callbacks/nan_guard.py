"""Stops a run whose loss is no longer a number, and says where."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from restorevar.errors import UserError

__all__ = ["NanGuard"]


class NanGuard(Callback):
    """Stops at a loss that is NaN or infinite, and names stage, step and the files of the batch.

    Looking at a loss waits for the GPU and asking the other processes is a collective, so both happen every so many
    batches only; what was between is remembered. No checkpoint is written in between without looking.

    Args:
        every_n_batches: Batches between looks on a GPU or with several processes; one CPU process looks at each.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        self.every_n_batches = every_n_batches
        self._bad: list[Tensor] = []
        self._seen: list[tuple[int, int, list[str]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier run."""
        self._bad, self._seen = [], []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers whether the loss is finite; looks if it is time.

        Raises:
            UserError: It was not, on some process.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._bad.append(~torch.isfinite(loss.detach()).all())
            self._seen.append((trainer.global_step, trainer.current_epoch, list(batch["path"])))
        one_cpu = trainer.world_size == 1 and pl_module.device.type == "cpu"
        if one_cpu or len(self._seen) >= self.every_n_batches:  # over epochs that have fewer, too
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what is left, before the model is exported."""
        self.look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never saves weights that a NaN may have spoilt."""
        self.look(trainer, pl_module)

    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the losses since the last look, on all processes.

        Raises:
            UserError: One was not finite.
        """
        bad, seen = self._bad, self._seen
        self._bad, self._seen = [], []
        flags = torch.stack(bad).tolist() if bad else []
        if not trainer.strategy.reduce_boolean_decision(any(flags), all=False):
            return
        stage = type(pl_module).__name__
        if not any(flags):
            raise UserError(f"the loss of {stage} is not a number on another process; its message says where")
        step, epoch, paths = seen[flags.index(True)]
        raise UserError(
            f"the loss of {stage} is not a number after step {step} of epoch {epoch} (process {trainer.global_rank}),"
            f" for the batch {', '.join(dict.fromkeys(paths))}; look at these files, lower the learning rate, or set"
            " trainer.precision to 32-true or bf16-mixed. The newest checkpoint is from before it"
        )
