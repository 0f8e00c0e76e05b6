import pytest
import torch

from restorevar.callbacks import CodebookReport
from restorevar.models.codebook import perplexity, token_counts
from restorevar.modules import TokenizerModule
from tests.modules.stages import fit


def test_use_and_perplexity_are_those_of_the_validation_photos(tiny_folders, tiny_photos, tmp_path):
    module = TokenizerModule(initial_model=str(tiny_folders["tokenizer"]))
    trainer = fit(module, tiny_photos, tmp_path, 1, [CodebookReport()], limit_val_batches=1.0, val_check_interval=1)
    model = module.model.eval()
    counts = torch.zeros(3, 16, dtype=torch.int64)
    for batch in trainer.datamodule.val_dataloader():
        tokens = model.tokenizer.quantizer.quantize(model.tokenizer.encode(batch["clean"]), model.scales).tokens
        counts += token_counts(tokens, model.scales, 16)
    logged = trainer.callback_metrics
    for scale in range(3):
        assert int(logged[f"codebook/used_scale_{scale + 1}"]) == int((counts[scale] > 0).sum())
        found = float(logged[f"codebook/perplexity_scale_{scale + 1}"])
        assert found == pytest.approx(float(perplexity(counts[scale])), rel=1e-4)
    assert float(logged["codebook/val_perplexity"]) == pytest.approx(float(perplexity(counts.sum(0))), rel=1e-4)
