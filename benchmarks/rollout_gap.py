"""Training on the model's own mistakes, on and off, for the same time: what the roll-out gains.

    python benchmarks/rollout_gap.py --tokenizer runs/nano/stage1/model --train PHOTOS --val OTHER_PHOTOS --minutes 30

Both sides start from the same weights and see the same samples in the same order. The side with self-correction has a
second forward pass, so it gets fewer steps in the same time: each side's number of steps follows from the time of its
first ones. Writes a table of the last validation: roll-out PSNR and, per scale, accuracy under teacher forcing and in
the roll-out, and the dB that a scale's errors cost.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from restorevar.datamodules import CleanPhotos, FixedDegradations, RestorationDataModule
from restorevar.models import RestoreVAR, TransformerConfig
from restorevar.models.corruption import SelfCorrection
from restorevar.modules import TransformerModule
from restorevar.optimization import CosineSchedule

TRIAL_STEPS = 12


class Clock(L.Callback):
    """Seconds a step, the first two left out."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Looks at the clock."""
        self.ends.append(time.monotonic())

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self.ends[-1] - self.ends[1]) / (len(self.ends) - 2)


def train(options: argparse.Namespace, correction: SelfCorrection | None, steps: int, folder: Path) -> dict[str, Any]:
    """One side; returns its last validation and the time of a step."""
    L.seed_everything(options.seed, verbose=False)
    model = RestoreVAR.from_pretrained(options.tokenizer)
    module = TransformerModule(
        initial_model=options.tokenizer,
        transformer=TransformerConfig(
            depth=options.depth,
            width=options.width,
            heads=4,
            drop_path=0.0,
            class_count=1,
            rotary_base=100.0,
            gain_init=1.0,
            local_condition=True,
        ),
        scale_weighting="inverse_side",
        self_correction=correction,
        optimizer=lambda groups: torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.95), weight_decay=0.02),
        schedule=CosineSchedule(warmup_steps=50),
        scalar_rate_multiplier=10.0,
    )
    kinds = ["haze", "rain", "snow", "low_light", "motion_blur"]
    data = RestorationDataModule(
        train=[CleanPhotos([options.train], degradations=dict.fromkeys(kinds, 1.0), repeat=1000)],
        val=[FixedDegradations([options.val], kinds=kinds, limit=options.photos)],
        image_size=model.image_size,
        batch_size=options.batch,
        seed=options.seed,
        resize_short_side=(1.0, 2.5),
        num_workers=options.workers,
    )
    clock = Clock()
    trainer = L.Trainer(
        accelerator=options.device,
        devices=1,
        precision=options.precision,
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if steps > TRIAL_STEPS else 0,
        gradient_clip_val=2.0,
        enable_checkpointing=False,
        logger=False,
        default_root_dir=folder,
        callbacks=[clock],
    )
    trainer.fit(module, datamodule=data)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"steps": steps, "seconds a step": clock.seconds, **scores}


def main() -> None:
    """Trains both sides, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="model folder of stage 1")
    parser.add_argument("--train", required=True, help="folder of photos")
    parser.add_argument("--val", required=True, help="folder of other photos")
    parser.add_argument("--photos", type=int, default=16, help="photos of --val to validate on")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each side")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--output", type=Path, default=Path("rollout_gap.json"))
    options = parser.parse_args()
    sides = {"off": None, "on": SelfCorrection()}
    results = {}
    for name, correction in sides.items():
        trial = train(options, correction, TRIAL_STEPS, options.output.parent)
        steps = max(int(60 * options.minutes / trial["seconds a step"]), TRIAL_STEPS + 1)
        results[name] = train(options, correction, steps, options.output.parent)
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("| | off | on |\n|---|---|---|")
    for name in results["off"]:
        print(f"| {name.removeprefix('val/')} | {results['off'][name]:.4g} | {results['on'][name]:.4g} |")


if __name__ == "__main__":
    main()
