"""Learning rate, gradient norm, speed and memory in the log."""

import resource
import sys
import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from restorevar.callbacks.progress import Rate
from restorevar.modules.base import is_logging_step

__all__ = ["TrainingMonitor", "gradient_norm", "peak_gibibytes"]


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Euclidean norm of all gradients of an optimizer's parameters, a scalar; split gradients are put together."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(gradients)
    return cast(Any, norm).full_tensor() if hasattr(norm, "full_tensor") else norm


def peak_gibibytes(device: torch.device) -> float:
    """Largest memory use so far in GiB: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class TrainingMonitor(Callback):
    """Logs `train/learning_rate`, `train/gradient_norm` (before clipping), `train/images_per_second` and memory.

    Only at steps that Lightning logs, so that other steps need not wait for the GPU.
    """

    def __init__(self) -> None:
        self._rate = Rate()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradient norm and learning rate of the first optimizer."""
        if not is_logging_step(trainer) or getattr(trainer.optimizers[0], "_optimizer", trainer.optimizers[0]) is not (
            getattr(optimizer, "_optimizer", optimizer)
        ):
            return
        pl_module.log("train/gradient_norm", gradient_norm(optimizer).to(pl_module.device))
        pl_module.log("train/learning_rate", float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Speed and memory."""
        self._rate.batch_end(time.monotonic())
        lately = self._rate.lately
        if lately is None or not is_logging_step(trainer):
            return
        pl_module.log("train/images_per_second", lately * len(batch["degraded"]) * trainer.world_size)
        pl_module.log("train/peak_memory_gib", peak_gibibytes(pl_module.device))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves validation out of the speed."""
        self._rate.pause()
