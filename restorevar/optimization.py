"""Parameter groups and learning-rate schedules. Pure torch: what a LightningModule hands to its optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from restorevar.errors import UserError

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "RecipeSchedule",
    "Schedule",
    "apply_schedule",
    "optimizer_settings",
    "parameter_groups",
    "reapply_settings",
]

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
SCALARS = ("gain", "global_gain", "log_scale")
SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


def parameter_groups(modules: Iterable[nn.Module], scalar_rate_multiplier: float = 1.0) -> list[dict[str, Any]]:
    """Splits parameters that want a gradient by what the recipe does to them.

    Weight decay is for the weights of linear and convolution layers only: none on biases, norms, embeddings (the
    codebook and positions included), gains and attention scales.

    Args:
        modules: What is trained.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest. AdamW moves a scalar
            by about the learning rate a step, whatever its gradient; from scratch 10 lets them arrive.

    Returns:
        Groups ``matrices``, ``vectors`` and ``scalars`` (those that are not empty) in the form of torch's optimizers.
        ``lr_multiplier`` is for :func:`apply_schedule`.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "scalars": []}
    seen: set[int] = set()
    for owner, name, parameter in _owned(modules):
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if name in SCALARS:
            groups["scalars"].append(parameter)
        elif name == "weight" and isinstance(owner, MATRICES):
            groups["matrices"].append(parameter)
        else:
            groups["vectors"].append(parameter)
    result: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        if not parameters:
            continue
        multiplier = scalar_rate_multiplier if name == "scalars" else 1.0
        group: dict[str, Any] = {"params": parameters, "name": name, "lr_multiplier": multiplier}
        if name != "matrices":
            group["weight_decay"] = 0.0
        result.append(group)
    return result


def _owned(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in modules:
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                yield owner, name, parameter


class Schedule(ABC):
    """Learning-rate multiplier over the steps of a run."""

    @abstractmethod
    def multiplier(self, step: int, steps: int, epoch_steps: int) -> float:
        """Multiplier of the peak learning rate.

        Args:
            step: Optimizer step, from 0.
            steps: Optimizer steps of the whole run.
            epoch_steps: Optimizer steps of one epoch.
        """


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The peak rate throughout."""

    def multiplier(self, step: int, steps: int, epoch_steps: int) -> float:
        """See :meth:`Schedule.multiplier`."""
        return 1.0


@dataclass(frozen=True)
class RecipeSchedule(Schedule):
    """The published recipe: full rate through the warm-up and a plateau, then linearly down.

    With w warm-up steps and n steps in all: 1 for i < w; then, with u = (i - w) / (n - 1 - w), 1 for u < 0.05 and
    0.01 + 0.99 (1 - u) / 0.95 after it. The published run starts its warm-up at the full rate.

    Attributes:
        warmup_epochs: Length of the warm-up.
        warmup_start: Multiplier of the first step of the warm-up, which rises linearly to 1. Published: 1.
        plateau: Part of the steps after the warm-up that keeps the full rate.
        final: Multiplier at the last step.
    """

    warmup_epochs: float = 1.0
    warmup_start: float = 1.0
    plateau: float = 0.05
    final: float = 0.01

    def multiplier(self, step: int, steps: int, epoch_steps: int) -> float:
        """See :meth:`Schedule.multiplier`."""
        warmup = round(self.warmup_epochs * epoch_steps)
        if step < warmup:
            return self.warmup_start + (1 - self.warmup_start) * step / warmup
        progress = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
        if progress < self.plateau:
            return 1.0
        return self.final + (1 - self.final) * (1 - progress) / (1 - self.plateau)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Linear warm-up from near 0, then a cosine down. Ours, for small models.

    Attributes:
        warmup_steps: Optimizer steps of the warm-up.
        final: Multiplier at the last step.
    """

    warmup_steps: int = 50
    final: float = 0.0

    def multiplier(self, step: int, steps: int, epoch_steps: int) -> float:
        """See :meth:`Schedule.multiplier`."""
        warmup = min(self.warmup_steps, steps // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def apply_schedule(
    optimizer: Optimizer, schedule: Schedule, steps: int, epoch_steps: int, rate: float = 1.0
) -> LambdaLR:
    """Sets the groups' learning rates and makes the scheduler that moves them at every optimizer step.

    Args:
        optimizer: Fresh optimizer of :func:`parameter_groups`.
        schedule: Multiplier over the run.
        steps: Optimizer steps of the whole run.
        epoch_steps: Optimizer steps of one epoch.
        rate: Factor on all learning rates, for a batch other than the one that they were given for.

    Raises:
        UserError: If the run has no end or no steps.
    """
    if not 1 <= steps < math.inf:
        raise UserError(
            f"the run has {steps} optimizer steps; the schedule needs an end: set trainer.max_epochs or max_steps"
        )
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"]) * rate * group.get("lr_multiplier", 1.0)
    return LambdaLR(optimizer, lambda step: schedule.multiplier(step, steps, epoch_steps))


def optimizer_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What a user sets in each group: peak learning rate, weight decay, betas.

    Args:
        optimizer: One with a scheduler.
    """
    return [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]


def reapply_settings(optimizer: Optimizer, scheduler: LambdaLR, settings: list[dict[str, Any]]) -> None:
    """Settings of this run, where a checkpoint brought back those of its own; the schedule stays where it is.

    Args:
        optimizer: After its state was loaded.
        scheduler: The same.
        settings: From :func:`optimizer_settings`, before that.
    """
    scheduler.base_lrs = [own["initial_lr"] for own in settings]
    for group, own, multiplier in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(own)
        group["lr"] = own["initial_lr"] * multiplier(scheduler.last_epoch)
