"""Trains nothing, but in Lightning's loop, and writes down what it saw; test_restoration.py runs it on two processes.

Usage: resume_script.py PHOTOS OUTPUT CHECKPOINT_OF_ONE_PROCESS
"""

import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path

import lightning as L
import torch

from restorevar.datamodules import CleanPhotos, RestorationDataModule


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch, index):
        names = [
            f"{Path(path).name} {hashlib.sha256(image.numpy().tobytes()).hexdigest()[:8]}"
            for path, image in zip(batch["path"], batch["degraded"], strict=True)
        ]
        self.seen.append(names)
        return self.layer(torch.ones(1, 1)).mean() * 0

    def validation_step(self, batch, index):
        self.validated += [Path(path).name for path in batch["path"]]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAndStop(L.Callback):
    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, module, *_):
        if len(module.seen) == self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(
    photos: Path,
    processes: int,
    steps: int,
    workers: int = 0,
    batch_size: int = 2,
    checkpoint: Path | None = None,
    stop_after: int = 0,
    save: Path | None = None,
    accumulate: int = 1,
    limit: int | None = None,
) -> dict:
    module = Recorder()
    data = RestorationDataModule(
        train=[CleanPhotos([str(photos)], {"clean": 1.0})],
        val=[CleanPhotos([str(photos)], {"clean": 1.0}, limit=5)],
        image_size=8,
        batch_size=batch_size,
        num_workers=workers,
        resize_short_side=(1.0, 2.0),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        limit_train_batches=limit,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[SaveAndStop(stop_after, save)] if save else [],
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return {
        "seen": module.seen,
        "validated": module.validated,
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
    }


def main(photos: str, output: str, other: str) -> None:
    folder = Path(output)
    runs = {
        "begun": run(Path(photos), 2, steps=8, stop_after=5, save=folder / "2.ckpt"),
        "resumed": run(Path(photos), 2, steps=8, checkpoint=folder / "2.ckpt"),
        "taken over": run(Path(photos), 2, steps=9, checkpoint=Path(other)),
    }
    (folder / f"{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main(*sys.argv[1:])
