"""One batch for any number of devices: gradient accumulation follows."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from restorevar.errors import UserError

__all__ = ["TotalBatch"]


class TotalBatch(Callback):
    """Sets the Trainer's accumulation so that devices x batch x accumulation is the batch that was asked for.

    Args:
        total: Samples in an optimizer step over all processes; None leaves `trainer.accumulate_grad_batches` alone.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is planned from the accumulation.

        Raises:
            UserError: The batches of all processes do not divide the total, or contradict the Trainer's setting.
        """
        if stage != "fit" or self.total is None:
            return
        if self.total < 1:
            raise UserError(f"total_batch.total is {self.total}; expected 1 or more, or null")
        batch_size = getattr(trainer, "datamodule").batch_size  # noqa: B009  # set by `fit`, unknown to the checker
        at_once = batch_size * trainer.world_size
        if self.total % at_once:
            fitting = [size for size in range(1, self.total + 1) if self.total % (size * trainer.world_size) == 0]
            advice = f"set data.batch_size to one of {', '.join(map(str, fitting))}" if fitting else "use fewer devices"
            raise UserError(
                f"a batch of {self.total} was asked for, but {trainer.world_size} processes x {batch_size} a batch ="
                f" {at_once} does not divide it; {advice}, or change total_batch.total"
            )
        accumulate = self.total // at_once
        if trainer.accumulate_grad_batches not in (1, accumulate):
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but a batch of {self.total} by"
                f" {trainer.world_size} processes x {batch_size} needs {accumulate}; leave one of the two out"
            )
        trainer.accumulate_grad_batches = accumulate
