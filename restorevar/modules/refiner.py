"""Stage 3: the refiner, on the transformer's own roll-outs."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.losses import ImageLoss
from restorevar.models import RefinerConfig, RestoreVAR
from restorevar.models.refiner import ConvolutionRefiner
from restorevar.modules.base import StageModule, grow, is_logging_step, load_initial
from restorevar.optimization import Schedule

__all__ = ["RefinerModule"]


class RefinerModule(StageModule):
    """Trains the refiner: L1 between the refined latent of a roll-out and the clean photo's continuous latent.

    Tokenizer and transformer are frozen and in evaluation mode (drop path off). A new convolutional refiner takes the
    sizes of the latent's channels from the first batch. The refiner is called inside
    ``training_step``, so under DistributedDataParallel its gradients are averaged over the processes.

    Args:
        initial_model: Model folder of stage 2 (or of stage 3, to go on).
        move_to_scales: Another schedule of as many scales to move the model to; None keeps the model's.
        refiner: Sizes of the refiner to add; None trains the one that the model has.
        losses: Terms of a loss between the decoded and the clean photo, added to that of the latent; None, as
            published, has none.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Learning-rate multiplier over the run.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest.
        reference_batch: Batch that the learning rate is given for; None takes the rate as it is.
        encoder_bfloat16: Convolutions of the frozen encoder in bfloat16 instead of float32: faster, and a few of the
            clean tokens change; how many is reported.
        latent_cache: Folder for the clean photos' latents, so that an epoch encodes the degraded photos alone once they
            are all there; needs crops that are the same in every epoch. None encodes them anew.
    """

    def __init__(
        self,
        initial_model: str | None = None,
        move_to_scales: tuple[int, ...] | None = None,
        refiner: RefinerConfig | None = None,
        losses: list[ImageLoss] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
        encoder_bfloat16: bool = False,
        latent_cache: str | None = None,
    ) -> None:
        super().__init__(
            initial_model,
            optimizer,
            schedule,
            scalar_rate_multiplier,
            reference_batch,
            encoder_bfloat16,
            latent_cache,
        )
        self.move_to_scales = move_to_scales
        self.refiner_config = refiner
        self.losses = losses or []
        self._is_refiner_new = False

    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        model = load_initial(self.initial_model, 3, self.move_to_scales)
        self._is_refiner_new = model.refiner is None
        return grow(model, "refiner", self.refiner_config)

    def trained_modules(self) -> list[nn.Module]:
        """The refiner."""
        assert self.model.refiner is not None
        return [self.model.refiner]

    def _measure_latents(self, latent: Tensor) -> None:
        """Gives the refiner the standard deviation of each latent channel, (B, Z, h, w) over all processes."""
        refiner = self.model.refiner
        if not isinstance(refiner, ConvolutionRefiner):
            return
        moments = torch.stack([latent.mean((0, 2, 3)), latent.square().mean((0, 2, 3))]).float()
        mean, square = self.trainer.strategy.reduce(moments, reduce_op="mean")
        refiner.latent_deviation.copy_((square - mean.square()).clamp_min(1e-12).sqrt())

    def _shared_step(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, refined latent and the roll-out's discrete latent."""
        with torch.no_grad():
            roll_out = self.model.roll_out(condition)
        refined = self.model.refine(roll_out, condition).float()
        return F.l1_loss(refined, target), refined, roll_out.latent

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """L1 to the clean latent, and the losses on the photo; beside it, what the unrefined roll-out would score."""
        self.check_batch(batch)
        condition, target = self.encode_pair(batch)
        if self._is_refiner_new and self.global_step == 0 and batch_idx == 0:
            self._measure_latents(target)
        loss, refined, latent = self._shared_step(condition, target)
        if self.losses:
            decoded = self.model.tokenizer.decode(refined, clamp=False)
            loss = loss + self.image_loss(self.losses, decoded, batch["clean"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(refined))
        if is_logging_step(self.trainer):
            self.log("train/loss_unrefined", F.l1_loss(latent, target), batch_size=len(refined))
        return {"loss": loss}

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of the restored photos, from one roll-out; the transformer's teacher-forced accuracy beside them."""
        self.check_batch(batch)
        condition, target = self.encode_pair(batch)
        loss, refined, latent = self._shared_step(condition, target)
        size = len(refined)
        self.log("val/loss", loss, batch_size=size, sync_dist=True)
        self.log("val/loss_unrefined", F.l1_loss(latent, target), batch_size=size, sync_dist=True)
        self.log_accuracy("val", *self.teacher_forced(condition, target))
        restored = self.model.tokenizer.decode(refined).float()
        self.score((restored + 1) / 2, batch)
        return {"images": {"degraded": batch["degraded"], "restored": restored, "clean": batch["clean"]}}
