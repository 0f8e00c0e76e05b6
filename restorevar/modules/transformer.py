"""Stage 2: the scale-wise transformer, by cross-entropy under teacher forcing."""

import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.errors import UserError
from restorevar.models import RestoreVAR, ScaleSchedule, TransformerConfig
from restorevar.models.corruption import SelfCorrection, requantize, sample_top_k
from restorevar.models.initialization import initialize_as_copy
from restorevar.models.published import initialize_from_var
from restorevar.models.sharding import gathered
from restorevar.modules.base import StageModule, grow, is_logging_step, load_initial, scale_accuracy
from restorevar.optimization import Schedule

__all__ = ["TransformerModule", "token_weights"]

log = logging.getLogger(__name__)

Weighting = Literal["tokens", "inverse_side", "scales"]


class TransformerModule(StageModule):
    """Trains the transformer to predict the clean photo's tokens from the degraded photo; the tokenizer is frozen.

    Validation is by roll-out, as users run it; the teacher-forced accuracy per scale stands beside it.

    Args:
        initial_model: Model folder of stage 1 (or of stage 2, to go on).
        move_to_scales: Another schedule of as many scales to move the model to; None keeps the model's.
        transformer: Sizes of the transformer to add; None trains the one that the model has.
        initial_weights: VAR's published transformer (``var_d16.pth``) to start from; None starts from scratch.
        copy_start: Start a new transformer as a copier of the degraded photo's own tokens, so that training learns the
            repair alone; needs ``local_condition``. For small models from scratch; not in the paper.
        scale_weighting: ``tokens`` counts every token alike (published); ``inverse_side`` weighs the tokens of scale k
            by 1 / s_k and ``scales`` by 1 / s_k^2, so that every scale counts alike, both normalised: the few tokens of
            the coarse scales, which hold the brightness, are not drowned out.
        label_smoothing: Of the cross-entropy; published: 0.
        self_correction: Puts the model's own mistakes into the inputs and lets finer scales learn to mend them; None,
            as published, trains on perfect inputs only.
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
        transformer: TransformerConfig | None = None,
        initial_weights: str | None = None,
        copy_start: bool = False,
        scale_weighting: Weighting = "tokens",
        label_smoothing: float = 0.0,
        self_correction: SelfCorrection | None = None,
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
        self.transformer_config = transformer
        self.initial_weights = initial_weights
        self.copy_start = copy_start
        self.scale_weighting = scale_weighting
        self.label_smoothing = label_smoothing
        self.self_correction = self_correction

    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        initial = load_initial(self.initial_model, 2, self.move_to_scales)
        is_new = initial.transformer is None
        model = grow(initial, "transformer", self.transformer_config)
        assert model.transformer is not None
        if self.initial_weights is not None:
            initialize_from_var(model, self.initial_weights)
        elif is_new and self.copy_start:
            if not model.transformer.config.local_condition:
                raise UserError("model.copy_start needs model.transformer.local_condition; set it to true")
            initialize_as_copy(model.tokenizer, model.transformer)
        if is_new and self.initial_weights is None and model.transformer.config.gain_init == 0:
            log.warning(
                "the transformer starts from scratch with gain_init 0, which starves the condition of gradient: set"
                " model.transformer.gain_init to 1.0, or model.initial_weights to VAR's var_d16.pth"
            )
        weights = token_weights(model.scales, self.scale_weighting)
        self.register_buffer("token_weights", weights, persistent=False)
        return model

    def trained_modules(self) -> list[nn.Module]:
        """The transformer."""
        assert self.model.transformer is not None
        return [self.model.transformer]

    def _shared_step(self, condition: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits and clean tokens."""
        if self.training and self.self_correction is not None:
            logits, tokens = self._with_own_mistakes(condition, latent, self.self_correction)
        else:
            logits, tokens = self.teacher_forced(condition, latent)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        loss = (losses.view_as(tokens) * self.get_buffer("token_weights")).mean()
        return loss, logits, tokens

    def _with_own_mistakes(self, condition: Tensor, latent: Tensor, settings: SelfCorrection) -> tuple[Tensor, Tensor]:
        """Logits for inputs of which some are the model's own samples, and the tokens that would mend them."""
        assert self.model.transformer is not None
        quantizer, scales = self.model.tokenizer.quantizer, self.model.scales
        with torch.no_grad():
            guesses, _ = self.teacher_forced(condition, latent)
            samples = sample_top_k(guesses, settings.top_k)
            replaced = settings.draw(len(latent), scales.tokens, latent.device)
            inputs, targets = requantize(quantizer, latent, samples, replaced, scales)
            teacher_input = quantizer.teacher_input(inputs, scales)
        return self.model.transformer(teacher_input, condition)[0], targets

    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Weighted cross-entropy over all scales."""
        self.check_batch(batch)
        loss, logits, tokens = self._shared_step(*self.encode_pair(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(tokens))
        if is_logging_step(self.trainer):
            self.log_accuracy("train", logits, tokens)
        return {"loss": loss}

    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of the roll-out; loss and accuracy per scale under teacher forcing."""
        self.check_batch(batch)
        condition, latent = self.encode_pair(batch)
        loss, logits, tokens = self._shared_step(condition, latent)
        self.log("val/loss", loss, batch_size=len(tokens), sync_dist=True)
        self.log_accuracy("val", logits, tokens)
        with gathered(self.model):
            roll_out = self.model.roll_out(condition)
            restored = self.model.decode(self.model.refine(roll_out, condition), [], 0.0).float()
        self.score((restored + 1) / 2, batch)
        self._log_gap(roll_out.tokens, logits, tokens)
        if batch_idx == 0:
            self._log_cost_of_errors(logits, tokens, batch["clean"])
        return {"images": {"degraded": batch["degraded"], "restored": restored, "clean": batch["clean"]}}

    def _log_gap(self, rolled_out: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """Accuracy per scale that is lost when the model sees its own coarser scales instead of perfect ones."""
        scales = self.model.scales
        forced = scale_accuracy(logits, tokens, scales)
        free = (rolled_out == tokens).float()
        for scale in range(len(scales)):
            accuracy = free[:, scales.span(scale)].mean()
            self.log(f"val/rollout_accuracy_scale_{scale + 1}", accuracy, batch_size=len(tokens), sync_dist=True)
            gap = forced[scale] - accuracy
            self.log(f"val/rollout_gap_scale_{scale + 1}", gap, batch_size=len(tokens), sync_dist=True)

    def _log_cost_of_errors(self, logits: Tensor, tokens: Tensor, clean: Tensor) -> None:
        """PSNR in dB that the teacher-forced errors of one scale cost, all other scales being right.

        On a few photos of the first batch: it takes a decoder pass for each scale.
        """
        few = slice(0, 4)
        quantizer, scales = self.model.tokenizer.quantizer, self.model.scales
        guesses, right, photos = logits[few].argmax(-1), tokens[few], clean[few].float()

        def psnr(given: Tensor) -> Tensor:
            decoded = self.model.tokenizer.decode(quantizer.latent_from_tokens(given, scales)).float()
            error = (decoded - photos).square().mean(dim=(1, 2, 3)) / 4  # in the range [0, 1]
            return -10 * error.clamp(min=1e-10).log10()

        best = psnr(right)
        for scale in range(len(scales)):
            mixed = right.clone()
            mixed[:, scales.span(scale)] = guesses[:, scales.span(scale)]
            lost = (best - psnr(mixed)).mean()
            self.log(f"val/db_lost_scale_{scale + 1}", lost, batch_size=len(right), sync_dist=True)


def token_weights(scales: ScaleSchedule, weighting: Weighting) -> Tensor:
    """Weight of each token in the loss, (T,) float32 with mean 1.

    Args:
        scales: The schedule.
        weighting: See :class:`TransformerModule`.
    """
    if weighting == "tokens":
        return torch.ones(scales.tokens)
    power = 0.5 if weighting == "inverse_side" else 1.0
    weights = torch.tensor(scales.lengths, dtype=torch.float32).pow(-power)[torch.from_numpy(scales.scale_of_token)]
    return weights / weights.mean()
