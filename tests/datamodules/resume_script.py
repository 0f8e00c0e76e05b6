"""Trains nothing, but in Lightning's loop, and writes down what it saw; run by test_restoration.py on N processes.

Usage: resume_script.py PHOTOS OUTPUT PROCESSES WORKERS [CHECKPOINT OF ANOTHER RUN]
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

STOP_AFTER, STEPS = 5, 14


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch, index):
        names = [
            f"{Path(path).name} {hashlib.sha256(image.numpy().tobytes()).hexdigest()[:8]}"
            for path, image in zip(batch["path"], batch["degraded"], strict=True)
        ]
        self.seen.append(names)
        return self.layer(torch.ones(1, 1)).mean() * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAndStop(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == STOP_AFTER:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(photos: Path, processes: int, workers: int, checkpoint: Path | None = None, save: Path | None = None):
    module = Recorder()
    data = RestorationDataModule(
        train=[CleanPhotos([str(photos)], {"clean": 1.0})],
        image_size=8,
        batch_size=2,
        num_workers=workers,
        resize_short_side=(1.0, 2.0),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[SaveAndStop(save)] if save else [],
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return {"seen": module.seen, "epoch": trainer.current_epoch, "step": trainer.global_step}


def main(photos: str, output: str, processes: str, workers: str, other: str | None = None) -> None:
    folder, count = Path(output), int(processes)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    runs = {
        "whole": run(Path(photos), count, int(workers)),
        "begun": run(Path(photos), count, int(workers), save=folder / f"{count}.ckpt"),
        "resumed": run(Path(photos), count, int(workers), checkpoint=folder / f"{count}.ckpt"),
    }
    if other:
        runs["taken over"] = run(Path(photos), count, int(workers), checkpoint=Path(other))
    (folder / f"{count}-{rank}.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main(*sys.argv[1:])
