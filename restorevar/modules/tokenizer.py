"""Stage 1: the tokenizer's decoder for continuous latents, or the whole tokenizer from scratch."""

from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from restorevar.datamodules.batch import RestorationBatch
from restorevar.errors import UserError
from restorevar.losses import AbsoluteError, AdversarialLoss, ImageLoss, generator_loss, hinge_loss
from restorevar.models import RestoreVAR, RestoreVARConfig, TokenizerConfig
from restorevar.models.codebook import (
    CodebookTraining,
    CodebookUse,
    initialize_codebook,
    perplexity,
    restart_codes,
    token_counts,
)
from restorevar.models.discriminator import PatchDiscriminator
from restorevar.models.quantizer import Quantization
from restorevar.modules.base import StageModule, is_logging_step, load_initial, sample_shares
from restorevar.optimization import Schedule

__all__ = ["TokenizerModule"]

POOL = 64  # photos whose latents k-means sees


class TokenizerModule(StageModule):
    """Trains the tokenizer.

    Without ``codebook`` the encoder and quantizer are frozen and the decoder learns to decode continuous latents of
    clean photos (the paper's stage 1). With it the whole tokenizer is trained from scratch (or on).

    Args:
        initial_model: Model folder to start from; None starts from scratch.
        scales: Sides of the token maps of a model from scratch, coarse to fine.
        tokenizer: Sizes of a tokenizer from scratch.
        codebook: How the codebook is trained; None freezes encoder and quantizer.
        losses: Terms of the decoding loss; None is L1 alone.
        adversarial: Patch adversarial term; None leaves it out. One optimizer serves both players: the discriminator
            sees detached photos, the decoder detached discriminator weights.
        degraded_share: Part of the photos that are degraded ones, reconstructed as they are: the frozen encoder must
            carry them later.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Learning-rate multiplier over the run.
        scalar_rate_multiplier: Learning rate of gains and attention scales over that of the rest.
        reference_batch: Batch that the learning rate is given for; None takes the rate as it is.
    """

    def __init__(
        self,
        initial_model: str | None = None,
        scales: tuple[int, ...] | None = None,
        tokenizer: TokenizerConfig | None = None,
        codebook: CodebookTraining | None = None,
        losses: list[ImageLoss] | None = None,
        adversarial: AdversarialLoss | None = None,
        degraded_share: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        scalar_rate_multiplier: float = 1.0,
        reference_batch: int | None = None,
    ) -> None:
        super().__init__(initial_model, optimizer, schedule, scalar_rate_multiplier, reference_batch)
        self.scales = scales
        self.tokenizer_config = tokenizer
        self.codebook = codebook
        self.losses = losses or [AbsoluteError()]
        self.adversarial = adversarial
        self.degraded_share = degraded_share
        self.discriminator: PatchDiscriminator | None = None
        self.codebook_use: CodebookUse | None = None
        self._candidates: Tensor | None = None
        self._restarted: int | None = None

    # ------------------------------------------------------------------ set-up
    def build_model(self) -> RestoreVAR:
        """See :meth:`StageModule.build_model`."""
        model = self._load_or_create()
        config = model.config
        if self.adversarial is not None:
            self.discriminator = PatchDiscriminator(self.adversarial.channels, self.adversarial.layers)
        if self.codebook is not None:
            vocabulary, channels = config.tokenizer.vocabulary_size, config.tokenizer.latent_channels
            self.codebook_use = CodebookUse(len(model.scales), vocabulary)
            # all three are in checkpoints: a resumed run sets up its codebook from the same photos at the same step
            self.register_buffer("codebook_is_set", torch.tensor(self.codebook.continuous_share == 0))
            self.register_buffer("pooled", torch.tensor(0))
            size = (POOL if self.codebook.continuous_share > 0 else 0, channels, *model.scales.finest)
            self.register_buffer("latent_pool", torch.zeros(size))
        return model

    def _load_or_create(self) -> RestoreVAR:
        if self.initial_model is not None:
            model = load_initial(self.initial_model, 1)
            if self.tokenizer_config is not None and self.tokenizer_config != model.config.tokenizer:
                raise UserError(
                    "the initial model has other tokenizer sizes than model.tokenizer; leave one of them out"
                )
            if self.scales is not None and tuple(self.scales) != model.config.scales:
                raise UserError(
                    f"the initial model has the scales {model.config.scales}, model.scales says {self.scales}"
                )
            return model
        if self.codebook is None:
            raise UserError(
                "training the decoder alone needs a tokenizer; give its folder in model.initial_model, "
                "or train a whole tokenizer with model.codebook"
            )
        if self.tokenizer_config is None or self.scales is None:
            raise UserError("a tokenizer from scratch needs its sizes; give model.tokenizer and model.scales")
        return RestoreVAR(RestoreVARConfig(scales=tuple(self.scales), tokenizer=self.tokenizer_config))

    def trained_modules(self) -> list[nn.Module]:
        """The tokenizer or its decoder side, and the discriminator."""
        tokenizer = self.model.tokenizer
        parts: list[nn.Module] = [tokenizer.post_quant_conv, tokenizer.decoder]
        if self.codebook is not None:
            parts = [tokenizer]
        return parts if self.discriminator is None else [*parts, self.discriminator]

    # ------------------------------------------------------------------ training
    def training_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Decoding loss, and with a codebook the quantizer's own."""
        self.check_batch(batch)
        step = self.global_step
        use_degraded = sample_shares(batch, step, "degraded") < self.degraded_share
        images = torch.where(_by_sample(use_degraded, batch["clean"]), batch["degraded"], batch["clean"])
        images = images.contiguous(memory_format=torch.channels_last)
        size = len(images)
        if self.codebook is None:
            with torch.no_grad():
                latent = self.model.tokenizer.encode(images)
            extra = latent.new_zeros(())
        else:
            latent, extra = self._quantized(images, batch, step)
        decoded = self.model.tokenizer.decode(latent, clamp=False)
        loss = extra + self.image_loss(self.losses, decoded, images)
        loss = loss + self._adversarial_loss(decoded, images, size)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        return {"loss": loss}

    def _quantized(self, images: Tensor, batch: RestorationBatch, step: int) -> tuple[Tensor, Tensor]:
        """The latent to decode, part of it quantized, and the weighted quantizer loss."""
        assert self.codebook is not None
        assert self.codebook_use is not None
        quantizer, scales = self.model.tokenizer.quantizer, self.model.scales
        latent = self.model.tokenizer.encode(images)
        if self.progress() < self.codebook.continuous_share:
            self._pool(latent.detach())
            return latent, self.no_gradient(quantizer.parameters())
        if not bool(self.get_buffer("codebook_is_set")):
            self._pool(latent.detach())
            self._set_codebook(step)
        last = None
        generator = torch.Generator().manual_seed(step)  # the same on all processes
        if torch.rand((), generator=generator) < self.codebook.last_scale_share:
            last = int(torch.randint(len(scales), (), generator=generator))
        result = quantizer.quantize(latent, scales, last)
        counts = token_counts(result.tokens, scales, quantizer.codebook.num_embeddings)
        self.codebook_use.update(cast(Tensor, self.trainer.strategy.reduce(counts, reduce_op="sum")))
        if self._restart_is_due(step + 1):
            self._candidates = self._sample_residuals(result, step)
        if is_logging_step(self.trainer):
            counted = self.codebook_use.counts
            self.log("codebook/perplexity", perplexity(counted.sum(0)))
            self.log("codebook/used", (counted.sum(0) > 0).float().sum())
        self.log("train/quantizer", result.loss, batch_size=len(images))
        discrete = sample_shares(batch, step, "discrete") < self.codebook.discrete_share
        mixed = torch.where(_by_sample(discrete, latent), result.straight_through, latent)
        # no phi of a scale that was left out gets a gradient otherwise
        unused = self.no_gradient(quantizer.parameters())
        return mixed, self.codebook.loss_weight * result.loss + unused

    def _adversarial_loss(self, decoded: Tensor, images: Tensor, size: int) -> Tensor:
        if self.adversarial is None or self.discriminator is None:
            return decoded.new_zeros(())
        if self.progress() < self.adversarial.start_share:
            return self.no_gradient(self.discriminator.parameters())
        fooled = generator_loss(self.discriminator.frozen(decoded))
        judged = hinge_loss(self.discriminator(images), self.discriminator(decoded.detach()))
        self.log_dict({"train/generator": fooled, "train/discriminator": judged}, batch_size=size)
        return self.adversarial.weight * fooled + judged

    # ------------------------------------------------------------------ codebook
    @torch.no_grad()
    def _pool(self, latent: Tensor) -> None:
        """Keeps the latest latents of all processes for k-means."""
        pool, pooled = self.get_buffer("latent_pool"), self.get_buffer("pooled")
        gathered = cast(Tensor, self.all_gather(latent)).reshape(-1, *latent.shape[1:])[:POOL]
        places = (torch.arange(len(gathered), device=pool.device) + pooled) % POOL
        pool[places] = gathered.to(pool)
        pooled += len(gathered)

    @torch.no_grad()
    def _set_codebook(self, step: int) -> None:
        """K-means on the pooled latents; the first process's result counts."""
        quantizer = self.model.tokenizer.quantizer
        count = min(int(self.get_buffer("pooled")), POOL)
        generator = torch.Generator().manual_seed(step)
        initialize_codebook(quantizer, self.get_buffer("latent_pool")[:count], self.model.scales, generator)
        self._share_codebook()
        self.get_buffer("codebook_is_set").fill_(True)

    def _share_codebook(self) -> None:
        weight = self.model.tokenizer.quantizer.codebook.weight
        weight.data.copy_(self.trainer.strategy.broadcast(weight.data, src=0))

    def _restart_is_due(self, done: int) -> bool:
        assert self.codebook is not None
        settings = self.codebook
        return done % settings.restart_every == 0 and done < settings.restart_until * self.total_steps

    @torch.no_grad()
    def _sample_residuals(self, result: Quantization, step: int) -> Tensor:
        """(2 V, Z) of this process's residuals, drawn at random."""
        residuals = torch.cat(result.residuals)
        number = 2 * self.model.tokenizer.quantizer.codebook.num_embeddings
        generator = torch.Generator().manual_seed(step * 4096 + self.global_rank)
        chosen = torch.randint(len(residuals), (number,), generator=generator)
        return residuals[chosen.to(residuals.device)]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Restarts dead entries right after the step that ends a window, so that every checkpoint has seen it.

        Callbacks that save run before this module's own `on_train_batch_end`.
        """
        super().optimizer_step(*args, **kwargs)
        if self._candidates is not None:
            self._restart_dead_codes(self._candidates, self.global_step + 1)  # this step is not counted yet
            self._candidates = None

    @torch.no_grad()
    def _restart_dead_codes(self, candidates: Tensor, step: int) -> None:
        assert self.codebook is not None
        assert self.codebook_use is not None
        gathered = cast(Tensor, self.all_gather(candidates)).reshape(-1, candidates.shape[-1])
        codebook = self.model.tokenizer.quantizer.codebook
        dead = self.codebook_use.dead(self.codebook.restart_below)
        restarted = restart_codes(codebook, dead, gathered, torch.Generator().manual_seed(step))
        self._share_codebook()
        self.codebook_use.reset()
        if restarted:
            self._forget_momentum(codebook.weight, dead)
        self._restarted = restarted

    def on_train_batch_end(self, outputs: Any, batch: RestorationBatch, batch_idx: int) -> None:
        """Logs how many entries were restarted."""
        if self._restarted is not None:
            self.log("codebook/restarted", float(self._restarted))
            self._restarted = None

    def _forget_momentum(self, weight: Tensor, rows: Tensor) -> None:
        """A restarted entry must not be pushed on by its old place's gradients."""
        state = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False)).state.get(weight, {})
        for name in ("exp_avg", "momentum_buffer"):
            if state.get(name) is not None:
                state[name][rows] = 0.0

    # ------------------------------------------------------------------ validation
    def validation_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """PSNR of the clean photos from their continuous and discrete latents, and of the degraded photos."""
        self.check_batch(batch)
        clean, size = batch["clean"], len(batch["clean"])
        degraded_features, latent = self.encode_pair(batch)
        tokenizer = self.model.tokenizer
        quantized = tokenizer.quantizer.quantize(latent, self.model.scales)
        continuous = tokenizer.decode(latent).float()
        discrete = tokenizer.decode(quantized.latent).float()
        degraded = tokenizer.decode(tokenizer.to_latent(degraded_features)).float()
        pairs = {
            "continuous": (continuous, clean),
            "discrete": (discrete, clean),
            "degraded": (degraded, batch["degraded"]),
        }
        for name, (decoded, original) in pairs.items():
            scores = self._metrics((decoded + 1) / 2, ((original + 1) / 2).clamp(0, 1))
            for metric, values in scores.items():
                self.log(f"val/{metric}_{name}", values.mean().to(self.device), batch_size=size, sync_dist=True)
        return {
            "images": {"clean": clean, "continuous": continuous, "discrete": discrete},
            "tokens": quantized.tokens,
        }


def _by_sample(chosen: Tensor, like: Tensor) -> Tensor:
    """(B,) bool on the CPU -> (B, 1, 1, 1) beside ``like``."""
    return chosen.to(like.device).view(-1, 1, 1, 1)
