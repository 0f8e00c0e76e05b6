"""Stage 5: the gate, on whole restorations against the clean photo. Ours, not the paper's."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.models import GateConfig, RestoreVAR
from restorevar.models.gate import Correction, PhotoGate, photo_statistics
from restorevar.modules.base import StageModule, grow, load_initial
from restorevar.optimization import Schedule

__all__ = ["TERMS", "GateModule", "blend_error", "blend_loss", "error_terms"]

TERMS = 15


class GateModule(StageModule):
    """Trains the gate: how much of a degraded photo to keep, told from its statistics and those of the restoration.

    Everything else is frozen. A restoration takes a second, the gate's own step a millisecond, and the error of any
    blend follows from fifteen numbers a photo (:func:`error_terms`). So those numbers and the statistics of all photos
    seen so far are remembered, and each step learns from a batch of them.

    Args:
        initial_model: Model folder of stage 3 or 4 (or of stage 5, to go on).
        move_to_scales: Another schedule of as many scales to move the model to; None keeps the model's.
        gate: Sizes of the gate to add; None trains the one that the model has.
        replay: Remembered photos in a step, beside those just restored.
        floor: Added to the mean squared error of a photo, range [0, 1], so that no photo is worth ever more.
        harm: How much more a dB counts by which a result is worse than the degraded photo.
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
        gate: GateConfig | None = None,
        replay: int = 60,
        floor: float = 3e-4,
        harm: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
        encoder_bfloat16: bool = False,
    ) -> None:
        super().__init__(initial_model, optimizer, schedule, scalar_rate_multiplier, reference_batch, encoder_bfloat16)
        self.move_to_scales = move_to_scales
        self.gate_config = gate
        self.replay = replay
        self.floor = floor
        self.harm = harm
        self._memory = torch.empty(0)

    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        model = load_initial(self.initial_model, 5, self.move_to_scales, keep_gate=True)
        return grow(model, "gate", self.gate_config)

    def trained_modules(self) -> list[nn.Module]:
        """The gate."""
        assert self.model.gate is not None
        return [self.model.gate]

    @torch.no_grad()
    def _restore(self, batch: RestorationBatch) -> tuple[Tensor, list[Tensor], Tensor]:
        """Latent and encoder features of the degraded photos, and the restored (B, 3, H, W) in [0, 1], ungated."""
        features, pyramid = self.encode(batch["degraded"])
        latent = self.model.refine(self.model.roll_out(features), features)
        fidelity = 0.0 if self.model.detail is None else 1.0
        return latent, pyramid, (self.model.decode_ungated(latent, pyramid, fidelity).float() + 1) / 2

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Negative PSNR of the blends of this batch and of remembered ones."""
        self.check_batch(batch)
        assert self.model.gate is not None
        restored = self._restore(batch)[2]
        degraded, clean = ((batch[name].float() + 1) / 2 for name in ("degraded", "clean"))
        with torch.autocast(restored.device.type, enabled=False):
            terms = error_terms(degraded, self.model.gate.filtered(restored, degraded), clean)
            new = torch.cat([terms, photo_statistics(degraded, restored)], dim=1)
            # the same memory on every process, in the order that one alone would have
            new = cast(Tensor, self.all_gather(new))
            new = new.transpose(0, 1).flatten(0, 1) if new.dim() == 3 else new
            old = self._memory.to(new)
            drawn = torch.randperm(len(old), generator=torch.Generator().manual_seed(self.global_step))[: self.replay]
            rows = torch.cat([new, old[drawn.to(old.device)]])
            rows = rows.repeat(2, 1) if len(rows) == 1 else rows  # statistics of one photo have no deviation
            self._memory = torch.cat([old, new])
            loss = blend_loss(self.model.gate, rows, self.floor, self.harm)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(clean))
        return {"loss": loss}

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of the restoration with the gate; PSNR without it beside them."""
        self.check_batch(batch)
        latent, pyramid, plain = self._restore(batch)
        restored = self.model.decode(latent, pyramid, 1.0).float()
        self.score((restored + 1) / 2, batch)
        psnr = self._metrics(plain, (batch["clean"].float() + 1) / 2)["psnr"].mean().to(self.device)
        self.log("val/psnr_ungated", psnr, batch_size=len(restored), sync_dist=True)
        return {"images": {"degraded": batch["degraded"], "restored": restored, "clean": batch["clean"]}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is remembered: a resumed run learns from the same photos."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gate_memory"] = self._memory.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back."""
        super().on_load_checkpoint(checkpoint)
        self._memory = checkpoint["gate_memory"]


def error_terms(degraded: Tensor, filtered: Tensor, clean: Tensor) -> Tensor:
    """What the error of every blend follows from.

    With E = c - z and D = x - z: the means of E^2, E D, D^2, E z, D z and z^2, and in each colour those of E, D and z.

    Args:
        degraded: x, (B, 3, H, W) in [0, 1].
        filtered: z, the same: the restored photo through the gate's filter.
        clean: c, the same.

    Returns:
        (B, 15).
    """
    error, change = clean - filtered, degraded - filtered
    pairs = [(error, error), (error, change), (change, change), (error, filtered), (change, filtered)]
    products = [(a * b).mean((1, 2, 3)) for a, b in [*pairs, (filtered, filtered)]]
    means = [photos.mean((2, 3)) for photos in (error, change, filtered)]
    return torch.cat([torch.stack(products, 1), *means], dim=1)


def blend_loss(gate: PhotoGate, rows: Tensor, floor: float, harm: float = 0.0) -> Tensor:
    """Negative PSNR of a gate's blends, mean over photos.

    Args:
        gate: The gate.
        rows: (B, 15 + 69): :func:`error_terms` and statistics of each photo.
        floor: Added to the mean squared error of a photo.
        harm: Weight of what is lost against the degraded photo, beside the PSNR itself.
    """
    terms, statistics = rows[:, :TERMS], rows[:, TERMS:]
    loss = 10 * (blend_error(terms, gate.read(statistics)) + floor).log10()
    of_degraded = terms[:, 0] - 2 * terms[:, 1] + terms[:, 2]
    return (loss + harm * F.relu(loss - 10 * (of_degraded + floor).log10())).mean()


def blend_error(terms: Tensor, correction: Correction) -> Tensor:
    """Mean squared error (B,) of z + g (x - z) + (1 - g) (a z + s), before values are clamped.

    Args:
        terms: (B, 15) of :func:`error_terms`.
        correction: g, s and a.
    """
    g, a, shift = correction.share[:, 0], correction.gain[:, 0], correction.shift
    rest = 1 - g
    ee, ed, dd, ez, dz, zz = terms[:, :6].unbind(1)
    se, sd, sz = ((shift * means).mean(1) for means in terms[:, 6:].split(3, 1))
    moved = a**2 * zz + 2 * a * sz + shift.square().mean(1)
    return ee - 2 * g * ed + g**2 * dd - 2 * rest * (a * ez + se - g * (a * dz + sd)) + rest**2 * moved
