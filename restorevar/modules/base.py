"""What all training stages share: where the model comes from, what is frozen, the optimizer, scores by roll-out."""

import dataclasses
import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from restorevar.datamodules.batch import CLEAN_KIND, PAIRED_KINDS, RestorationBatch
from restorevar.errors import UserError
from restorevar.evaluation.metrics import ImageMetrics
from restorevar.losses import ImageLoss
from restorevar.models import DetailConfig, GateConfig, RefinerConfig, RestoreVAR, ScaleSchedule, TransformerConfig
from restorevar.modules.latent_cache import LatentCache
from restorevar.optimization import (
    RecipeSchedule,
    Schedule,
    apply_schedule,
    optimizer_settings,
    parameter_groups,
    reapply_settings,
)

__all__ = ["StageModule", "grow", "load_initial", "sample_shares", "scale_accuracy"]

logger = logging.getLogger(__name__)

KINDS = (*PAIRED_KINDS, CLEAN_KIND)
SCORES = ("psnr", "ssim")

PartName = Literal["transformer", "refiner", "detail", "gate"]


class StageModule(L.LightningModule, ABC):
    """One training stage.

    A stage starts from a model folder, adds or trains some of its parts while the others stay frozen in evaluation
    mode, and holds the whole model in its checkpoints. Nothing is loaded before :meth:`configure_model`.

    Args:
        initial_model: Model folder, shipped name or hub id to start from.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Learning-rate multiplier over the run.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest.
        reference_batch: Batch (over devices and accumulation) that the learning rate is given for; for another one it
            follows in proportion. None takes the rate as it is.
        encoder_bfloat16: Convolutions of the frozen encoder in bfloat16, float32 from ``quant_conv`` on: faster, and a
            few of the clean tokens change; how many is reported. Without it the encoder computes in float32 whatever
            the Trainer's precision.
        latent_cache: Folder for the clean photos' latents, so that an epoch encodes the degraded photos alone once
            they are all there; needs crops that are the same in every epoch. None encodes them anew.
    """

    model: RestoreVAR
    """The whole model, frozen parts included; there after :meth:`configure_model`."""

    def __init__(
        self,
        initial_model: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
        encoder_bfloat16: bool = False,
        latent_cache: str | None = None,
    ) -> None:
        super().__init__()
        self.initial_model = initial_model
        self.optimizer = optimizer
        self.schedule = schedule or RecipeSchedule()
        self.scalar_rate_multiplier = scalar_rate_multiplier
        self.reference_batch = reference_batch
        self.encoder_bfloat16 = encoder_bfloat16
        self.latent_cache = latent_cache
        self.total_steps = 0
        self._settings: list[dict[str, Any]] = []
        self._is_built = False
        self._is_change_reported = False
        self._latents: LatentCache | None = None
        self._metrics = ImageMetrics(SCORES)
        self._scores: Tensor | None = None

    @abstractmethod
    def build_model(self) -> RestoreVAR:
        """The model to train: loaded from ``initial_model``, with this stage's part added."""

    @abstractmethod
    def trained_modules(self) -> list[nn.Module]:
        """What is trained; everything else in the model is frozen."""

    def export_model(self) -> RestoreVAR:
        """The model that the next stage starts from; called on all processes, used on the first one."""
        from restorevar.models import sharding

        return sharding.unsharded_copy(self.model) if sharding.is_sharded(self.model) else self.model

    # ------------------------------------------------------------------ set-up
    def configure_model(self) -> None:
        """Builds the model once and freezes what this stage does not train."""
        if self._is_built:
            return
        self.model = self.build_model().to(memory_format=torch.channels_last)
        self._is_built = True
        self.model.requires_grad_(False)
        for module in self.trained_modules():
            module.requires_grad_(True)
        self.train(self.training)
        if self.device_mesh is not None:  # FSDP
            from restorevar.models.sharding import shard

            shard(self.trained_modules(), self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model's sizes, so that a checkpoint can be made into a model folder by itself."""
        checkpoint["model_config"] = self.model.config.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses what would not fit, before anything is loaded.

        Raises:
            UserError: The checkpoint is of another stage or of a model of other sizes.
        """
        stage = checkpoint.get("export", {}).get("stage", type(self).__name__)
        if stage != type(self).__name__:
            raise UserError(f"the checkpoint is of {stage}, the configuration says {type(self).__name__}: change one")
        if "state_dict" not in checkpoint:  # split weights (FSDP) are read beside it
            return
        own = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if own != given:
            name = min(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            sizes = [str(shapes.get(name, "not there")) for shapes in (given, own)]
            raise UserError(
                f"the checkpoint is of a model of other sizes ({name}: {sizes[0]}, here {sizes[1]}); give the"
                " settings of its run"
            )

    def train(self, mode: bool = True) -> "StageModule":
        """Training mode for what is trained; frozen parts stay in evaluation mode (drop path off) whatever happens."""
        super().train(mode)
        if self._is_built:
            self.model.eval()
            for module in self.trained_modules():
                module.train(mode)
        return self

    def configure_optimizers(self) -> Any:
        """Optimizer over decay groups, and the schedule by optimizer steps."""
        self.total_steps = planned_steps(self.trainer, self.epoch_steps())
        rate = 1.0
        if self.reference_batch is not None:
            accumulate = self.trainer.accumulate_grad_batches
            batch = cast(Any, self.trainer).datamodule.batch_size * self.trainer.world_size * accumulate
            rate = batch / self.reference_batch
        groups = parameter_groups(self.trained_modules(), self.scalar_rate_multiplier)
        try:
            optimizer = self.optimizer(cast(Iterable[Any], groups))
        except (TypeError, ValueError) as error:  # such as a negative rate
            raise UserError(f"model.optimizer: {error}") from error
        scheduler = apply_schedule(optimizer, self.schedule, self.total_steps, self.epoch_steps(), rate)
        self._settings = optimizer_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def epoch_batches(self) -> int:
        """Batches of an epoch on this process.

        `trainer.num_training_batches` is not known this early, and asking `trainer.estimated_stepping_batches` would
        make Lightning set up the data before it has read a checkpoint, whose position in the data it then ignores.
        """
        batches = len(cast(Any, self.trainer).datamodule.train_dataloader())
        limit = cast(Any, self.trainer).limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer batches than the others."""
        return -(-self.epoch_batches() // self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        """Learning rate, decay and betas are this run's own, also when it goes on from a checkpoint of another's."""
        scheduler = self.lr_schedulers()
        optimizer = self.optimizers(use_pl_optimizer=False)
        if self._settings and isinstance(scheduler, LambdaLR) and isinstance(optimizer, torch.optim.Optimizer):
            reapply_settings(optimizer, scheduler, self._settings)

    def on_fit_start(self) -> None:
        """Refuses to keep latents of crops that never come again.

        Raises:
            UserError: With the settings that make them random.
        """
        if self.latent_cache is not None and (moving := cast(Any, self.trainer).datamodule.moving_crops):
            changes = ", ".join(f"data.{name}" for name in moving)
            raise UserError(
                f"model.latent_cache is for crops that are the same in every epoch; turn off {changes}, or leave"
                " model.latent_cache out"
            )

    # ------------------------------------------------------------------ steps
    def on_train_batch_start(self, batch: RestorationBatch, batch_idx: int) -> None:
        """Seeds drop path and the like from (seed, epoch, batch, process); says once what bfloat16 changes.

        A resumed run draws what an uninterrupted one would have drawn, and nothing about random states need be saved.
        """
        if self.encoder_bfloat16 and not self._is_change_reported:
            self._is_change_reported = True
            share = float(self.changed_tokens(batch))
            if self.trainer.is_global_zero:
                logger.info("bfloat16 in the encoder changes %.2f %% of the clean tokens (first batch)", 100 * share)
        numbers = (cast(Any, self.trainer).datamodule.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(zlib.crc32(" ".join(map(str, numbers)).encode()))

    def check_batch(self, batch: RestorationBatch) -> None:
        """Refuses photos of a size that is not the model's.

        Raises:
            UserError: With both sizes.
        """
        found, expected = tuple(batch["degraded"].shape[2:]), self.model.image_size
        if found != expected:
            raise UserError(
                f"the data module hands out photos of {found[1]} x {found[0]} pixels; this model's own size is "
                f"{expected[1]} x {expected[0]}: set data.image_size to that, or change the scales"
            )

    def progress(self) -> float:
        """Part of the run's optimizer steps that are done, in [0, 1)."""
        return self.global_step / max(self.total_steps, 1)

    def no_gradient(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """A zero that depends on parameters not used in this step, which DistributedDataParallel insists on."""
        return torch.stack([0.0 * parameter.sum().float() for parameter in parameters if parameter.requires_grad]).sum()

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, Z, h, w) and pyramid of the frozen encoder, in its own precision whatever the Trainer's.

        Args:
            images: (B, 3, H, W) in [-1, 1].
        """
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.encoder_bfloat16):
            features, pyramid = self.model.tokenizer.encoder.features(images)
        return features.to(self.model.dtype), pyramid  # what takes the pyramid casts it

    @torch.no_grad()
    def encode_pair(self, batch: RestorationBatch) -> tuple[Tensor, Tensor]:
        """Degraded features (B, Z, h, w) and clean continuous latent (B, Z, h, w) in one pass of the frozen encoder.

        Latents that the cache has are not made again.
        """
        clean, size, cache = batch["clean"], len(batch["degraded"]), None
        keys = batch.get("clean_key", [])  # validation photos have none
        found: list[Tensor | None] = [None] * size
        if self.latent_cache is not None and keys:
            if self._latents is None:  # not before a checkpoint's weights are there
                self._latents = LatentCache(self.latent_cache, self.model, self.encoder_bfloat16)
            cache = self._latents
            found = [cache.read(key) for key in keys]
            clean = clean[torch.tensor([latent is None for latent in found])]
        images = torch.cat([batch["degraded"], clean])
        if len(images) == 1:
            images = images.repeat(2, 1, 1, 1)  # a photo alone would be rounded otherwise than in a batch
        features = self.encode(images)[0]
        latent = self.model.tokenizer.to_latent(features)[size : size + len(clean)]
        return features[:size], latent if cache is None else cache.complete(keys, found, latent)

    @torch.no_grad()
    def changed_tokens(self, batch: RestorationBatch) -> Tensor:
        """Share of a batch's clean tokens that bfloat16 convolutions in the encoder change, () float32."""
        self.check_batch(batch)
        tokenizer, images = self.model.tokenizer, batch["clean"].contiguous(memory_format=torch.channels_last)
        tokens = []
        for enabled in (False, True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
                latent = tokenizer.encode(images)
            tokens.append(tokenizer.quantizer.quantize(latent, self.model.scales).tokens)
        return (tokens[0] != tokens[1]).float().mean()

    def teacher_forced(self, condition: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) under teacher forcing and the right tokens (B, T).

        Args:
            condition: (B, Z, h, w) degraded features.
            latent: (B, Z, h, w) clean continuous latent.
        """
        assert self.model.transformer is not None
        quantizer, scales = self.model.tokenizer.quantizer, self.model.scales
        with torch.no_grad():
            tokens = quantizer.quantize(latent, scales).tokens
            teacher_input = quantizer.teacher_input(tokens, scales)
        return self.model.transformer(teacher_input, condition)[0], tokens

    def image_loss(self, losses: Sequence[ImageLoss], decoded: Tensor, clean: Tensor) -> Tensor:
        """Weighted sum of the terms, in float32, each logged as ``train/<name>``.

        Args:
            losses: The terms.
            decoded: (B, 3, H, W), not clamped.
            clean: (B, 3, H, W) in [-1, 1].
        """
        total = decoded.new_zeros((), dtype=torch.float32)
        with torch.autocast(clean.device.type, enabled=False):
            for term in losses:
                value = term(decoded.float(), clean)
                self.log(f"train/{term.name}", value, batch_size=len(clean))
                total = total + term.weight * value
        return total

    def log_accuracy(self, part: str, logits: Tensor, tokens: Tensor) -> None:
        """Logs the share of right tokens per scale as ``<part>/accuracy_scale_<k>``, k from 1."""
        accuracy = scale_accuracy(logits.detach(), tokens, self.model.scales)
        named = {f"{part}/accuracy_scale_{scale + 1}": value for scale, value in enumerate(accuracy)}
        self.log_dict(named, batch_size=len(tokens), sync_dist=part == "val")

    # ------------------------------------------------------------------ validation
    def on_validation_batch_start(self, batch: RestorationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs what bfloat16 in the encoder changes, on the first batch."""
        if self.encoder_bfloat16 and batch_idx == 0:
            share = self.changed_tokens(batch)
            self.log("val/tokens_changed_by_bfloat16", share, batch_size=len(batch["clean"]), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Empties the scores: sums and counts per kind, plus the degraded photos' own PSNR."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        self._scores = torch.zeros(len(KINDS), len(SCORES) + 2, dtype=dtype, device=self.device)

    def score(self, restored: Tensor, batch: RestorationBatch) -> None:
        """Adds a batch to the scores per kind; a degradation of the user's own counts as ``other``.

        Args:
            restored: (B, 3, H, W) in [0, 1].
            batch: Where the clean and degraded photos are.
        """
        assert self._scores is not None
        clean, degraded = (batch["clean"].float() + 1) / 2, (batch["degraded"].float() + 1) / 2
        values = self._metrics(restored.float().clamp(0, 1), clean)
        before = ImageMetrics(("psnr",))(degraded, clean)["psnr"]
        for index, kind in enumerate(batch["kind"]):
            row = [*(float(values[name][index]) for name in SCORES), float(before[index]), 1.0]
            known = kind if kind in KINDS else "other"
            self._scores[KINDS.index(known)] += torch.tensor(row, dtype=self._scores.dtype, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs PSNR, SSIM and gain over the degraded photos, per kind and on average over the degraded kinds.

        Every process logs the same keys: the table is summed over all of them first.
        """
        assert self._scores is not None
        scores = cast(Tensor, self.trainer.strategy.reduce(self._scores, reduce_op="sum"))
        if self.trainer.sanity_checking or not bool(scores.any()):
            return
        means = scores[:, :-1] / scores[:, -1:].clamp(min=1)
        seen = scores[:, -1] > 0
        log: dict[str, Tensor] = {}
        for index, kind in enumerate(KINDS):
            if seen[index]:
                log |= {f"val/{name}_{kind}": means[index, column].float() for column, name in enumerate(SCORES)}
                log[f"val/gain_{kind}"] = (means[index, 0] - means[index, -1]).float()
        degraded = seen & (torch.arange(len(KINDS), device=seen.device) != KINDS.index(CLEAN_KIND))
        if degraded.any():
            log |= {f"val/{name}": means[degraded, column].mean().float() for column, name in enumerate(SCORES)}
            log["val/gain"] = (means[degraded, 0] - means[degraded, -1]).mean().float()
        self.log_dict(log, sync_dist=True)  # the same on all processes already; Lightning warns otherwise


def is_logging_step(trainer: L.Trainer) -> bool:
    """Whether Lightning writes what is logged during this batch; others spare costlier numbers and the host sync."""
    return (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % cast(Any, trainer).log_every_n_steps == 0


def planned_steps(trainer: L.Trainer, epoch_steps: int) -> int:
    """Optimizer steps of the whole run.

    Args:
        trainer: Says when it ends.
        epoch_steps: Optimizer steps of an epoch.

    Raises:
        UserError: If it never does, or an epoch has no batch.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    bounds = [steps] if steps >= 0 else []
    if epochs is not None and epochs >= 0:
        bounds.append(epochs * epoch_steps)
    if not bounds or min(bounds) < 1:
        raise UserError(
            f"the run has {min(bounds) if bounds else 'endless'} optimizer steps; the schedule needs an end: set"
            " trainer.max_epochs or trainer.max_steps"
        )
    return min(bounds)


def grow(
    model: RestoreVAR, name: PartName, config: TransformerConfig | RefinerConfig | DetailConfig | GateConfig | None
) -> RestoreVAR:
    """The model with one part more; those that it has already keep their weights.

    Args:
        model: What the stage starts from.
        name: The part.
        config: Its sizes; None leaves it as it is.

    Raises:
        UserError: If the model has the part in other sizes, or has none and no sizes are given.
    """
    present = getattr(model.config, name)
    if present is None and config is None:
        raise UserError(f"the initial model has no {name} and model.{name} gives no sizes; give them")
    if config is None or config == present:
        return model
    if present is not None:
        differing = [
            f"{field.name} {getattr(present, field.name)} against {getattr(config, field.name)}"
            for field in dataclasses.fields(config)
            if getattr(present, field.name) != getattr(config, field.name)
        ]
        raise UserError(
            f"the initial model has a {name} of another size ({', '.join(differing)}); leave model.{name} out to "
            "go on with its sizes, or start from a model without that part"
        )
    added: dict[str, Any] = {name: config}
    grown = RestoreVAR(dataclasses.replace(model.config, **added))
    left = grown.load_state_dict(model.state_dict(), strict=False)
    assert not left.unexpected_keys  # the grown model has all of the old one's parts
    return grown


def load_initial(
    initial_model: str | None,
    stage: int,
    scales: Sequence[int] | None = None,
    keep_gate: bool = False,
) -> RestoreVAR:
    """Loads the model that a stage starts from.

    Args:
        initial_model: Model folder, shipped name or hub id.
        stage: Number of the stage; from 3 on it needs a transformer.
        scales: Schedule to move the model to; None keeps the model's.
        keep_gate: Whether a gate stays. It knows the results of the model that it was trained for, so the stages that
            change those leave it out.

    Raises:
        UserError: If none was given, it cannot be loaded, or it lacks what the stage needs.
    """
    if initial_model is None:
        raise UserError(
            f"stage {stage} starts from a trained model; give the folder that the stage before exported:"
            " model.initial_model"
        )
    path = Path(initial_model)
    if path.is_dir() and not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        raise UserError(
            f"model.initial_model {path} is a run's folder; expected the model folder in it: {path / 'model'}"
        )
    model = RestoreVAR.from_pretrained(initial_model)
    if stage > 2 and model.transformer is None:
        raise UserError(
            f"model.initial_model {initial_model} holds a tokenizer only; give the export of stage {min(stage - 1, 3)}"
        )
    if not keep_gate and model.gate is not None:
        logger.info("the gate of %s is left out: what is trained now changes what it judges; stage 5 makes one", path)
        model.set_gate(None)
    return model if scales is None else model.set_scales(scales)


def scale_accuracy(logits: Tensor, tokens: Tensor, scales: ScaleSchedule) -> Tensor:
    """Share of right tokens at each scale.

    Args:
        logits: (B, T, V).
        tokens: (B, T) the right ones.
        scales: The schedule.

    Returns:
        (K,) float32.
    """
    right = (logits.argmax(-1) == tokens).float()
    return torch.stack([right[:, scales.span(scale)].mean() for scale in range(len(scales))])


def sample_shares(batch: RestorationBatch, step: int, salt: str) -> Tensor:
    """One number in [0, 1) a sample, (B,) float32 on the CPU.

    It hangs on the sample and the step, not on the place in the batch or the process, so that any number of processes
    (and a resumed run) makes the same choices.

    Args:
        batch: The samples.
        step: Optimizer step.
        salt: Another word gives independent numbers.
    """
    keys: Sequence[str] = [
        f"{salt} {step} {path} {kind}" for path, kind in zip(batch["path"], batch["kind"], strict=True)
    ]
    return torch.tensor([zlib.crc32(key.encode()) / 2**32 for key in keys])
