"""The smallest model, data and runs that exercise every stage; also a script that Lightning starts once a process.

python tests/training/tiny.py FOLDER JSON     one or several fits; results go to FOLDER/result-RANK.pt
"""

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image

from restorevar.callbacks import ExponentialMovingAverage, NewestCheckpoint
from restorevar.datamodules import PairedFolders, RestorationDataModule
from restorevar.models import (
    DetailConfig,
    GateConfig,
    RefinerConfig,
    RestoreVAR,
    RestoreVARConfig,
    TokenizerConfig,
    TransformerConfig,
)
from restorevar.models.codebook import CodebookTraining
from restorevar.modules import (
    DetailModule,
    GateModule,
    RefinerModule,
    StageModule,
    TokenizerModule,
    TransformerModule,
)
from restorevar.optimization import ConstantSchedule

SCALES = (1, 2, 4)
SIDE = 16
TOKENIZER = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    latent_channels=4,
    vocabulary_size=16,
    stem_patch=2,
    attention=False,
    norm_groups=4,
)
TRANSFORMER = TransformerConfig(depth=2, width=16, heads=2, drop_path=0.0, gain_init=1.0)
REFINER = RefinerConfig(width=16, heads=2, mlp_width=16, depth=2)
STAGES = ("decoder", "scratch", "transformer", "refiner")


def make_data(folder: Path, count: int = 24) -> None:
    """Pairs of small smooth images, the degraded ones darker and noisy."""
    generator = np.random.default_rng(0)
    for name in ("clean", "degraded"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        coarse = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        clean = np.asarray(Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC))
        degraded = (clean * 0.6 + generator.normal(0, 8, clean.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(clean).save(folder / "clean" / f"{index:03}.png")
        Image.fromarray(degraded).save(folder / "degraded" / f"{index:03}.png")


def make_models(folder: Path, drop_path: float = 0.0) -> None:
    """Model folders that the stages start from: `tokenizer` and `transformer`."""
    torch.manual_seed(0)
    transformer = TransformerConfig(depth=2, width=16, heads=2, drop_path=drop_path, gain_init=1.0)
    model = RestoreVAR(RestoreVARConfig(scales=SCALES, tokenizer=TOKENIZER, transformer=transformer))
    torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight)
    model.save_pretrained(folder / "transformer")
    tokenizer = RestoreVAR(RestoreVARConfig(scales=SCALES, tokenizer=TOKENIZER))
    tokenizer.tokenizer.load_state_dict(model.tokenizer.state_dict())
    tokenizer.save_pretrained(folder / "tokenizer")


def make_module(folder: Path, stage: str, optimizer: str, drop_path: float = 0.0, **options: Any) -> StageModule:
    """A stage's module with a constant learning rate."""
    torch.manual_seed(1)
    rate = {"sgd": 0.05, "adamw": 1e-3}[optimizer]

    def make_optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, rate) if optimizer == "sgd" else torch.optim.AdamW(groups, rate)

    common: dict[str, Any] = {"optimizer": make_optimizer, "schedule": ConstantSchedule(), **options}
    if stage == "decoder":
        return TokenizerModule(initial_model=str(folder / "tokenizer"), **common)
    if stage == "scratch":
        codebook = CodebookTraining(continuous_share=0.2, restart_every=3, restart_below=0.5, restart_until=1.0)
        return TokenizerModule(scales=SCALES, tokenizer=TOKENIZER, codebook=codebook, degraded_share=0.5, **common)
    if stage == "transformer":
        config = TransformerConfig(depth=2, width=16, heads=2, drop_path=drop_path, gain_init=1.0)
        return TransformerModule(initial_model=str(folder / "tokenizer"), transformer=config, **common)
    if stage == "detail":
        return DetailModule(initial_model=str(folder / "transformer"), detail=DetailConfig(width=8, blocks=1), **common)
    if stage == "gate":
        return GateModule(initial_model=str(folder / "transformer"), gate=GateConfig(hidden=4), **common)
    return RefinerModule(initial_model=str(folder / "transformer"), refiner=REFINER, **common)


class Recorder(L.Callback):
    """Losses, the gradients of step 1, and the tokens that stage 3 rolls out."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.tokens: dict[str, torch.Tensor] = {}
        self.paths: list[list[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.paths.append([Path(path).name for path in batch["path"]])
        if isinstance(pl_module, RefinerModule) and not self.tokens:
            with torch.no_grad():
                tokens = pl_module.model.roll_out(pl_module.encode_pair(batch)[0]).tokens
            self.tokens = dict(zip(self.paths[0], tokens, strict=True))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            for name, parameter in pl_module.named_parameters():
                if parameter.grad is not None:
                    self.gradients[name] = whole(parameter.grad).clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, put together if it is split over processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def fit(
    folder: Path,
    stage: str,
    run: str,
    *,
    optimizer: str = "adamw",
    devices: int = 1,
    strategy: str = "auto",
    accelerator: str = "cpu",
    precision: str = "32-true",
    batch_size: int = 4,
    max_steps: int = 3,
    max_epochs: int | None = None,
    until: int | None = None,
    accumulate: int = 1,
    resume: str | None = None,
    drop_path: float = 0.0,
    every_n_steps: int = 1000,
    options: dict[str, Any] | None = None,
    callbacks: list[L.Callback] | None = None,
) -> dict[str, Any]:
    """One fit; `until` stops earlier than the schedule says, with a checkpoint."""
    from restorevar.strategies import ShardedStrategy

    torch.manual_seed(2)  # new parts start alike, whatever ran in this process before
    module = make_module(folder, stage, optimizer, drop_path, **(options or {}))
    data = RestorationDataModule(
        train=[PairedFolders(degraded=str(folder / "degraded"), clean=str(folder / "clean"), kind="low_light")],
        image_size=SIDE,
        batch_size=batch_size,
        seed=3,
    )
    recorder = Recorder()
    chosen: Any = ShardedStrategy() if strategy == "fsdp" else strategy
    newest = NewestCheckpoint(every_n_steps=every_n_steps, folder=str(folder / run / "checkpoints"))
    stop = [StopAt(until)] if until is not None else []
    trainer = L.Trainer(
        accelerator=accelerator,
        precision=precision,
        devices=devices,
        strategy=chosen,
        max_steps=max_steps if max_epochs is None else -1,
        max_epochs=-1 if max_epochs is None else max_epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        default_root_dir=folder / run,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[recorder, *stop, newest, *(callbacks or [])],
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume and str(folder / resume / "checkpoints" / "last.ckpt"))
    return {
        "losses": recorder.losses,
        "gradients": recorder.gradients,
        "tokens": recorder.tokens,
        "paths": recorder.paths,
        "weights": {name: whole(value).clone() for name, value in module.state_dict().items()},
    }


class StopAt(L.Callback):
    """Leaves after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class KillAt(L.Callback):
    """Ends the process as `kill -9` does, at a step or inside the save that follows it.

    Args:
        step: Optimizer step, from 1.
        where: `before`: before the step's forward pass; `gradients`: between backward and update; `half`: when half of
            the checkpoint is written; `unsynced`: when all of it is written; `unnamed`: before it is renamed;
            `named`: right after.
    """

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.where == "before" and trainer.global_step == self.step - 1:
            kill()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.where == "gradients" and trainer.global_step == self.step - 1:
            kill()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if trainer.global_step != self.step:
            return
        from restorevar import files
        from restorevar.callbacks import checkpoint as module

        if self.where == "half":
            save = torch.save

            def half(content: Any, path: Path) -> None:
                save(content, path)
                os.truncate(path, path.stat().st_size // 2)
                kill()

            torch.save = half
        elif self.where == "unsynced":
            files.os = type(
                "Os", (), {"fsync": staticmethod(lambda descriptor: kill()), "__getattr__": getattr_of(os)}
            )()
        elif self.where == "unnamed":
            Path.replace = lambda path, target: kill()
        elif self.where == "named":
            module.sync = lambda path: kill()


def getattr_of(module: Any) -> Any:
    """`__getattr__` of a stand-in for a module."""
    return lambda self, name: getattr(module, name)


def kill() -> None:
    """Nothing is flushed, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def fit_or_die(folder: Path, stage: str, run: str, step: int | None, where: str, max_steps: int) -> None:
    """A run that saves after every step, resumed where it can be, and killed unless `step` is None."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    callbacks: list[L.Callback] = [ExponentialMovingAverage(decay=0.9)]
    if step is not None:
        callbacks.append(KillAt(step, where))
    exists = (folder / run / "checkpoints" / "last.ckpt").exists()
    settings: dict[str, Any] = {"max_steps": max_steps, "drop_path": 0.3, "every_n_steps": 1, "callbacks": callbacks}
    fit(folder, stage, run, resume=run if exists else None, **settings)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
    results = {name: fit(folder, **settings) for name, settings in runs.items()}
    torch.save(results, folder / f"result-{os.environ.get('LOCAL_RANK', '0')}.pt")


if __name__ == "__main__":
    main()
