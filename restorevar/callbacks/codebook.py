"""How much of the codebook is used, per scale."""

from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from restorevar.models.codebook import perplexity, token_counts
from restorevar.modules.base import StageModule

__all__ = ["CodebookReport"]


class CodebookReport(L.Callback):
    """Logs entries used and perplexity per scale, of the clean validation photos' tokens.

    A perplexity over all scales below a quarter of the vocabulary is a collapse.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Empties the counts."""
        model = cast(StageModule, pl_module).model
        shape = (len(model.scales), model.config.tokenizer.vocabulary_size)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the tokens that the module hands out."""
        if isinstance(outputs, dict) and "tokens" in outputs and self._counts is not None:
            model = cast(StageModule, pl_module).model
            self._counts += token_counts(outputs["tokens"], model.scales, self._counts.shape[1])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the counts of all processes together."""
        assert self._counts is not None
        counts = cast(Tensor, trainer.strategy.reduce(self._counts, reduce_op="sum"))
        if trainer.sanity_checking or not bool(counts.any()):
            return
        log: dict[str, Tensor] = {}
        for scale, of_scale in enumerate(counts):
            log[f"codebook/used_scale_{scale + 1}"] = (of_scale > 0).float().sum()
            log[f"codebook/perplexity_scale_{scale + 1}"] = perplexity(of_scale)
        log["codebook/val_used"] = (counts.sum(0) > 0).float().sum()
        log["codebook/val_perplexity"] = perplexity(counts.sum(0))
        pl_module.log_dict(log, sync_dist=True)  # the same on all processes already
