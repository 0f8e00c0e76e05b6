"""The model folder that a stage ends with."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from restorevar.errors import UserError
from restorevar.models import RestoreVAR
from restorevar.models.pretrained import copy_license
from restorevar.modules.base import StageModule

__all__ = ["ExportModel"]

log = logging.getLogger(__name__)


class ExportModel(L.Callback):
    """Writes ``config.json``, weights and a model card when ``fit`` ends, with averaged weights if any.

    Args:
        folder: Where to; None is ``model`` in the run's folder.
        license: Licence of the weights for ``config.json`` and the card (SPDX name or a file's name); None leaves what
            the model says. A licence file of the model that training started from is copied.
        scales: Schedule of as many scales that the exported model works at, such as that of a larger size than the
            crops of training; None keeps that of training.
    """

    def __init__(
        self, folder: str | None = None, license: str | None = None, scales: tuple[int, ...] | None = None
    ) -> None:
        self.folder = folder
        self.license = license
        self.scales = scales
        self._trained = False
        self._validated: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses scales that the trained model could not take, before it is trained.

        Raises:
            UserError: There are more or fewer than the model has.
        """
        if self.scales is not None and isinstance(pl_module, StageModule):
            own = pl_module.model.scales
            if len(self.scales) != len(own):
                raise UserError(
                    f"export.scales has {len(self.scales)} numbers; expected {len(own)}, as the model's {own.to_list()}"
                )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the step that the scores are of."""
        self._validated = trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what the export would be, for `restorevar consolidate`."""
        if isinstance(pl_module, StageModule):
            scales = None if self.scales is None else list(self.scales)
            export = {"license": self.license, "scales": scales, "initial_model": pl_module.initial_model}
            checkpoint["export"] = export | {"stage": type(pl_module).__name__}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers that the training loop ran, so averaged weights have been copied already."""
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports, unless the run was a trial or stopped early by an interruption."""
        if trainer.fast_dev_run or trainer.interrupted or not isinstance(pl_module, StageModule):  # type: ignore[attr-defined]
            return
        if not self._trained:
            # resumed at its very end: the loop had nothing to do and skipped the hook that copies the averages
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_train_end(trainer, pl_module)
        model = pl_module.export_model()  # puts split weights together, so on all processes
        if trainer.is_global_zero:
            folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "model"
            if self.license is not None:
                model.config = dataclasses.replace(model.config, license=self.license)
            if self.scales is not None:
                model.set_scales(self.scales)
            model.save_pretrained(folder, model_card(trainer, pl_module, model, self._validated))
            if pl_module.initial_model is not None:
                copy_license(pl_module.initial_model, folder)
            log.info("model folder: %s", folder)
        trainer.strategy.barrier()


def model_card(trainer: L.Trainer, module: StageModule, model: RestoreVAR, validated: int | None = None) -> str:
    """Markdown text: what the model is, how it was trained, what it scored, after `validated` steps."""
    height, width = model.image_size
    lines = [
        f"# RestoreVAR after {type(module).__name__.removesuffix('Module').lower()} training",
        "",
        "All-in-one image restoration (haze, rain, snow, low light, motion blur) by visual autoregression.",
        f"Own size {width} x {height} pixels, {len(model.scales)} scales of {model.scales.to_list()}; other sizes are",
        "restored in overlapping tiles.",
        "",
        "| part | parameters (M) |",
        "|---|---|",
        *(f"| {name} | {_millions(part):.2f} |" for name, part in model.named_children()),
        "",
        "## Training",
        "",
        f"- stage: `{type(module).__name__}`, started from `{module.initial_model or 'scratch'}`",
        f"- optimizer steps: {trainer.global_step}; processes: {trainer.world_size}; precision: {trainer.precision}",
        "- settings: `config.yaml` in the folder of the run",
        f"- licence of the weights: {model.config.license or 'not stated; that of the training photos may bind'}",
        "",
    ]
    scores = {name: float(value) for name, value in _scores(trainer).items()}
    if scores:
        when = "at the end" if validated in (None, trainer.global_step) else f"after step {validated}"
        lines += [f"## Validation {when}", "", "| score | value |", "|---|---|"]
        lines += [f"| {name.removeprefix('val/')} | {value:.4g} |" for name, value in sorted(scores.items())]
        lines.append("")
    lines += ["## Use", "", "```python", "from restorevar import RestoreVAR", ""]
    lines += ['image = RestoreVAR.from_pretrained("this folder").restore(photo)', "```", ""]
    return "\n".join(lines)


def _millions(part: nn.Module) -> float:
    return sum(parameter.numel() for parameter in part.parameters()) / 1e6


def _scores(trainer: L.Trainer) -> dict[str, Any]:
    return {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
