"""Stage 2: the scale-wise transformer, by cross-entropy under teacher forcing."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.errors import UserError
from restorevar.models import RestoreVAR, ScaleSchedule, TransformerConfig
from restorevar.models.published import initialize_from_var
from restorevar.modules.base import StageModule, grow, load_initial
from restorevar.optimization import Schedule

__all__ = ["TransformerModule", "token_weights"]


class TransformerModule(StageModule):
    """Trains the transformer to predict the clean photo's tokens from the degraded photo; the tokenizer is frozen.

    Validation is by roll-out, as users run it; the teacher-forced accuracy per scale stands beside it.

    Args:
        initial_model: Model folder of stage 1 (or of stage 2, to go on).
        scales: Another schedule of as many scales to move the model to; None keeps the model's.
        transformer: Sizes of the transformer to add; None trains the one that the model has.
        initial_weights: VAR's published transformer (``var_d16.pth``) to start from; None starts from scratch.
        scale_weighting: ``tokens`` counts every token alike (published); ``inverse_side`` weighs scale k by 1 / s_k,
            normalised, so that the few tokens of the coarse scales, which hold the brightness, are not drowned out.
        label_smoothing: Of the cross-entropy; published: 0.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Learning-rate multiplier over the run.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest.
        reference_batch: Batch that the learning rate is given for; None takes the rate as it is.
    """

    def __init__(
        self,
        initial_model: str | None = None,
        scales: tuple[int, ...] | None = None,
        transformer: TransformerConfig | None = None,
        initial_weights: str | None = None,
        scale_weighting: Literal["tokens", "inverse_side"] = "tokens",
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
    ) -> None:
        super().__init__(initial_model, optimizer, schedule, scalar_rate_multiplier, reference_batch)
        self.scales = scales
        self.transformer_config = transformer
        self.initial_weights = initial_weights
        self.scale_weighting = scale_weighting
        self.label_smoothing = label_smoothing

    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        model = grow(load_initial(self.initial_model, "stage 2", self.scales), transformer=self.transformer_config)
        if model.transformer is None:
            raise UserError("the initial model has no transformer and model.transformer gives no sizes; give them")
        if self.initial_weights is not None:
            initialize_from_var(model, self.initial_weights)
        weights = token_weights(model.scales, self.scale_weighting)
        self.register_buffer("token_weights", weights, persistent=False)
        return model

    def trained_modules(self) -> list[nn.Module]:
        """The transformer."""
        assert self.model.transformer is not None
        return [self.model.transformer]

    def _shared_step(self, batch: RestorationBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits and clean tokens."""
        self.check_batch(batch)
        logits, tokens = self.teacher_forced(*self.encode_pair(batch))
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        loss = (losses.view_as(tokens) * self.get_buffer("token_weights")).mean()
        return loss, logits, tokens

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Weighted cross-entropy over all scales."""
        loss, logits, tokens = self._shared_step(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(tokens))
        if self.is_logging_step():
            self.log_accuracy("train", logits, tokens)
        return {"loss": loss}

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of the roll-out; loss and accuracy per scale under teacher forcing."""
        loss, logits, tokens = self._shared_step(batch)
        self.log("val/loss", loss, batch_size=len(tokens), sync_dist=True)
        self.log_accuracy("val", logits, tokens)
        restored = self.model.generate(batch["degraded"], fidelity=0.0).image
        self.score(restored, batch)
        return {"images": {"degraded": batch["degraded"], "restored": restored * 2 - 1, "clean": batch["clean"]}}


def token_weights(scales: ScaleSchedule, weighting: Literal["tokens", "inverse_side"]) -> Tensor:
    """Weight of each token in the loss, (T,) float32 with mean 1.

    Args:
        scales: The schedule.
        weighting: See :class:`TransformerModule`.
    """
    if weighting == "tokens":
        return torch.ones(scales.tokens)
    sides = torch.tensor([length**0.5 for length in scales.lengths])
    weights = (1 / sides)[torch.from_numpy(scales.scale_of_token)]
    return weights / weights.mean()
