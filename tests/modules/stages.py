"""Batches, modules and short runs for the tests of the training stages."""

import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image

from restorevar.datamodules import CleanPhotos, FixedDegradations, RestorationBatch, RestorationDataModule

KINDS = ("haze", "rain", "snow", "low_light")


def make_batch(size: int = 4, side: int = 32, seed: int = 0) -> RestorationBatch:
    """Smooth random photos; the degraded ones are darker."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 4, generator=generator) * 2 - 1
    clean = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return {
        "degraded": clean * 0.5 - 0.4,
        "clean": clean,
        "kind": [KINDS[index % 4] for index in range(size)],
        "dataset": ["test"] * size,
        "path": [f"{seed}-{index}.png" for index in range(size)],
    }


def make_data(photos: Path, **settings) -> RestorationDataModule:
    """Tiny crops of real photos."""
    kinds = dict.fromkeys(KINDS, 1.0)
    return RestorationDataModule(
        train=[CleanPhotos(folders=[str(photos)], degradations=kinds, repeat=6)],
        val=[FixedDegradations(folders=[str(photos)], kinds=["haze", "low_light"], limit=1)],
        image_size=32,
        batch_size=4,
        resize_short_side=(1.0, 1.5),
        **settings,
    )


def fit(
    module, photos: Path | None, folder: Path, steps: int = 3, callbacks=(), ckpt_path=None, data=None, **settings
) -> L.Trainer:
    """A short run on the CPU."""
    settings = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **settings}
    settings["check_val_every_n_epoch"] = None  # val_check_interval counts steps
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data or make_data(photos), ckpt_path=ckpt_path)
    return trainer


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """Names of weights that differ."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def save_photo(path: Path, side: int, seed: int = 0) -> None:
    """A small random photo file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
