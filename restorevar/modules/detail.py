"""Stage 4: the detail path, on roll-outs against the clean photo. Ours, not the paper's."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.losses import AbsoluteError, ImageLoss
from restorevar.models import DetailConfig, RestoreVAR
from restorevar.modules.base import StageModule, grow, load_initial, sample_shares
from restorevar.optimization import Schedule

__all__ = ["DetailModule"]


class DetailModule(StageModule):
    """Trains the detail path: what the latent cannot hold, from the degraded photo's own encoder features.

    Tokenizer, transformer and refiner are frozen and in evaluation mode, so fidelity 0 stays what it was. Each sample
    draws a fidelity w: 1 with probability ``full_fidelity_share``, else uniform in [0, 1], so that every setting
    between works.

    Args:
        initial_model: Model folder of stage 3 (or of stage 2 or 4, to go on).
        move_to_scales: Another schedule of as many scales to move the model to; None keeps the model's.
        detail: Sizes of the path to add; None trains the one that the model has.
        losses: Terms of the loss between decoded and clean photo; None is L1 alone.
        full_fidelity_share: Part of the samples with w = 1.
        feature_drop_share: Part of the samples whose encoder features are replaced by zeros, so that the path does
            not learn to live without the latent.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Learning-rate multiplier over the run.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest.
        reference_batch: Batch that the learning rate is given for; None takes the rate as it is.
        encoder_bfloat16: Convolutions of the frozen encoder in bfloat16 instead of float32: faster, and a few of the
            clean tokens change; how many is reported.
    """

    def __init__(
        self,
        initial_model: str | None = None,
        move_to_scales: tuple[int, ...] | None = None,
        detail: DetailConfig | None = None,
        losses: list[ImageLoss] | None = None,
        full_fidelity_share: float = 0.5,
        feature_drop_share: float = 0.2,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
        encoder_bfloat16: bool = False,
    ) -> None:
        super().__init__(initial_model, optimizer, schedule, scalar_rate_multiplier, reference_batch, encoder_bfloat16)
        self.move_to_scales = move_to_scales
        self.detail_config = detail
        self.losses = losses or [AbsoluteError()]
        self.full_fidelity_share = full_fidelity_share
        self.feature_drop_share = feature_drop_share

    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        model = load_initial(self.initial_model, 4, self.move_to_scales)
        return grow(model, "detail", self.detail_config)

    def trained_modules(self) -> list[nn.Module]:
        """The detail path."""
        assert self.model.detail is not None
        return [self.model.detail]

    def _latent(self, batch: RestorationBatch) -> tuple[Tensor, list[Tensor]]:
        """Refined latent (B, Z, h, w) of the roll-out, and the degraded photos' encoder features."""
        with torch.no_grad():
            features, pyramid = self.encode(batch["degraded"])
            latent = self.model.refine(self.model.roll_out(features), features)
        return latent, pyramid

    def _fidelity(self, batch: RestorationBatch) -> Tensor:
        """A fidelity (B,) for each sample."""
        fidelity, place = (sample_shares(batch, self.global_step, name) for name in ("fidelity", "full"))
        fidelity[place < self.full_fidelity_share] = 1.0
        return fidelity.to(batch["clean"].device)

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Decoding loss at a drawn fidelity."""
        self.check_batch(batch)
        step, clean = self.global_step, batch["clean"]
        latent, pyramid = self._latent(batch)
        kept = (sample_shares(batch, step, "features") >= self.feature_drop_share).to(clean.device).view(-1, 1, 1, 1)
        decoded = self.model.decode(latent, [level * kept for level in pyramid], self._fidelity(batch), clamp=False)
        loss = self.image_loss(self.losses, decoded, clean)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(clean))
        return {"loss": loss}

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of the roll-out at fidelity 1; PSNR at fidelity 0 beside them."""
        self.check_batch(batch)
        latent, pyramid = self._latent(batch)
        restored = self.model.decode(latent, pyramid, 1.0).float()
        self.score((restored + 1) / 2, batch)
        plain = self._metrics((self.model.decode(latent, pyramid, 0.0).float() + 1) / 2, (batch["clean"] + 1) / 2)
        psnr = plain["psnr"].mean().to(self.device)
        self.log("val/psnr_fidelity_0", psnr, batch_size=len(restored), sync_dist=True)
        return {"images": {"degraded": batch["degraded"], "restored": restored, "clean": batch["clean"]}}
