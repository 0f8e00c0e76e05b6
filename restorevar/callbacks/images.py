"""Pictures of what goes in and comes out, in TensorBoard and as files."""

from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from restorevar.files import atomic_write

__all__ = ["ImageGrids", "labelled_grid"]


class ImageGrids(L.Callback):
    """The first training batch and the first validation photos, as labelled grids.

    Args:
        count: Rows at most.
        side: Photos are shrunk to this many pixels at most.
        files: Also write ``pictures/*.png`` into the run's folder.
    """

    def __init__(self, count: int = 6, side: int = 256, files: bool = True) -> None:
        self.count = count
        self.side = side
        self.files = files
        self._rows: list[dict[str, Tensor]] = []
        self._labels: list[str] = []
        self._seen_first = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Shows the first batch that is trained on: the cheapest check of the data."""
        if self._seen_first or not trainer.is_global_zero:
            return
        self._seen_first = True
        columns = {name: batch[name].detach().float().cpu() for name in ("degraded", "clean") if name in batch}
        labels = [f"{kind} {Path(path).name}" for kind, path in zip(batch["kind"], batch["path"], strict=True)]
        labels = labels[: self.count]
        rows = [{name: images[row] for name, images in columns.items()} for row in range(len(labels))]
        self._write(trainer, "train_first_batch", rows, labels)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Empties the rows."""
        self._rows, self._labels = [], []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first photos, one row each."""
        if not isinstance(outputs, dict) or "images" not in outputs or not trainer.is_global_zero:
            return
        for index, kind in enumerate(batch["kind"]):
            if len(self._rows) >= self.count:
                return
            self._rows.append(
                {name: images[index].detach().float().cpu() for name, images in outputs["images"].items()}
            )
            self._labels.append(kind)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the rows."""
        if self._rows and trainer.is_global_zero and not trainer.sanity_checking:
            # `validate` may look at another checkpoint, or at other photos
            name = "validation" if trainer.state.fn == "fit" else "validate"
            self._write(trainer, name, self._rows, self._labels)

    def _write(self, trainer: L.Trainer, name: str, rows: list[dict[str, Tensor]], labels: list[str]) -> None:
        grid = labelled_grid(rows, labels, self.side)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, grid, trainer.global_step, dataformats="HWC")
        if self.files:
            with atomic_write(Path(trainer.default_root_dir) / "pictures" / f"{name}.png") as temporary:
                Image.fromarray(grid).save(temporary)


def labelled_grid(rows: list[dict[str, Tensor]], labels: list[str], side: int = 256) -> NDArray[np.uint8]:
    """One picture of several photos in several versions.

    Args:
        rows: For each photo, (3, H, W) images in [-1, 1] by the name of their column; all alike.
        labels: What to write above each row.
        side: Images are shrunk to this many pixels at most.

    Returns:
        (height, width, 3) uint8.
    """
    names = list(rows[0])
    height, width = (int(size) for size in rows[0][names[0]].shape[1:])
    scale = min(side / max(height, width), 1.0)
    cell = (max(round(width * scale), 1), max(round(height * scale), 1))
    bar, gap = 14, 2
    canvas = Image.new("RGB", (len(names) * (cell[0] + gap), bar + len(rows) * (cell[1] + bar + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((column * (cell[0] + gap) + 2, 0), name, fill="black")
    for row, (images, label) in enumerate(zip(rows, labels, strict=True)):
        top = bar + row * (cell[1] + bar + gap)
        draw.text((2, top), label, fill="black")
        for column, name in enumerate(names):
            canvas.paste(
                _to_pil(images[name]).resize(cell, Image.Resampling.LANCZOS), (column * (cell[0] + gap), top + bar)
            )
    return np.asarray(canvas)


def _to_pil(image: Tensor) -> Image.Image:
    values = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(cast(Any, values.permute(1, 2, 0).numpy()))
