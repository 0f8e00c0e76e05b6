"""Writes every restored photo under its input's name."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from restorevar.datamodules.shards import is_member
from restorevar.errors import UserError
from restorevar.modules.restoration import RestoredPhoto

__all__ = ["RestoredPhotoWriter"]


class RestoredPhotoWriter(BasePredictionWriter):
    """Writes restored photos of `restorevar predict` and `restorevar test`, each as soon as it is done.

    A photo lands in `FOLDER/DATA SET/`, with its name and its place below the folder that all photos of its set share.
    Predicted photos keep format, orientation and metadata. Tested ones are PNG, since they are what was scored; those
    degraded on the fly have the kind and severity in their name. If two have one name, the second ends in `_2`.

    Args:
        folder: Where; `restored` in the run's folder (`trainer.default_root_dir`) if not given.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__("batch")
        self.folder = folder
        self._bases: dict[str, str] = {}
        self._given: set[Path] = set()
        self._written: set[Path] = set()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the folder that the photos of each set share.

        Raises:
            UserError: Photos are to be read from shards, where they have no file of their own.
        """
        loaders = trainer.predict_dataloaders
        if packed := next((record.path for record in _records(loaders) if is_member(record.path)), None):
            raise UserError(f"{packed} is a photo in a shard; expected files: give predict the folder that was packed")
        self._look_at(loaders)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the folder that the photos of each set share."""
        self._look_at(trainer.test_dataloaders)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the photos of a predicted batch, alike their inputs."""
        from restorevar.restoration.photo import read_photo, write_photo

        for photo in prediction:
            original = read_photo(photo.path)
            pixels = photo.restored
            if original.pixels.dtype != pixels.dtype:  # 16-bit files keep their depth
                pixels = pixels.astype(original.pixels.dtype) * 257
            place = self._place(trainer, photo)
            place = place.with_name(f"{place.stem}{_suffix(photo)}{place.suffix}")
            write_photo(self._checked(place), dataclasses.replace(original, pixels=pixels))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the photos of a tested batch as PNG."""
        from restorevar.restoration.photo import Photo, write_photo

        for photo in outputs["photos"]:
            if photo.restored is not None:
                place = self._place(trainer, photo)
                place = place.with_name(f"{place.stem}{_suffix(photo)}.png")
                write_photo(self._checked(place), Photo(photo.restored, format="PNG"))

    def _look_at(self, loaders: Any) -> None:
        records = list(_records(loaders))
        self._bases = _common_folders(records)
        self._written = set()
        self._given = {Path(path).resolve() for record in records for path in (record.path, record.clean) if path}

    def _checked(self, place: Path) -> Path:
        stem, number = place.stem, 1
        while place in self._written:  # `a.png` and `a.jpg`, or one photo with two seeds
            number += 1
            place = place.with_stem(f"{stem}_{number}")
        if place.resolve() in self._given:
            raise UserError(f"{place} is a photo that was given, and would be written over; give another folder")
        self._written.add(place)
        return place

    def _place(self, trainer: L.Trainer, photo: RestoredPhoto) -> Path:
        root = Path(self.folder or Path(trainer.default_root_dir) / "restored")
        # the name of a set comes from a manifest, and may hold anything
        folder = os.path.normpath(os.path.join(os.sep, photo.dataset)).lstrip(os.sep)
        return root / folder / os.path.relpath(photo.path, self._bases[photo.dataset])


def _suffix(photo: RestoredPhoto) -> str:
    """What tells degraded versions of one file apart."""
    return "" if photo.severity is None else f"_{photo.kind}_{photo.severity:.2f}"


def _common_folders(records: Sequence[Any]) -> dict[str, str]:
    """Data set to the deepest folder that holds all its files."""
    paths: dict[str, list[str]] = {}
    for record in records:
        paths.setdefault(record.dataset, []).append(os.path.dirname(os.path.abspath(record.path)))
    return {dataset: os.path.commonpath(folders) for dataset, folders in paths.items()}


def _records(loaders: Any) -> Iterator[Any]:
    for loader in loaders if isinstance(loaders, list) else [loaders]:
        yield from loader.dataset.records
