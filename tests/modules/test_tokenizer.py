import lightning as L
import pytest
import torch

from restorevar.errors import UserError
from restorevar.losses import AbsoluteError, AdversarialLoss
from restorevar.models import TokenizerConfig
from restorevar.models.codebook import CodebookTraining
from restorevar.modules import TokenizerModule
from tests.conftest import SCALES, TOKENIZER
from tests.modules.stages import changed, fit, snapshot

SCRATCH = {"scales": SCALES, "tokenizer": TOKENIZER}


class Watch(L.Callback):
    """Remembers something at the end of every step."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(self.look(pl_module))


def codebook_of(module):
    return module.model.tokenizer.quantizer.codebook.weight.detach().clone()


def test_the_decoder_alone_learns_on_continuous_latents(tiny_folders, tiny_photos, tmp_path):
    module = TokenizerModule(initial_model=str(tiny_folders["tokenizer"]))
    module.configure_model()
    before = snapshot(module.model)
    trainer = fit(module, tiny_photos, tmp_path, limit_val_batches=1.0, val_check_interval=3)
    names = changed(before, module.model)
    assert names
    assert all(name.startswith(("tokenizer.decoder.", "tokenizer.post_quant_conv.")) for name in names)
    assert {"val/psnr_continuous", "val/psnr_discrete", "val/psnr_degraded", "val/ssim_continuous"} <= set(
        trainer.callback_metrics
    )


def test_from_scratch_everything_learns(tiny_photos, tmp_path):
    torch.manual_seed(0)
    module = TokenizerModule(**SCRATCH, codebook=CodebookTraining(continuous_share=0.0), degraded_share=0.5)
    module.configure_model()
    before = snapshot(module.model)
    losses = Watch(lambda module: float(module.trainer.callback_metrics["train/l1"]))
    fit(module, tiny_photos, tmp_path, steps=48, callbacks=[losses])
    names = changed(before, module.model)
    assert any(name.startswith("tokenizer.encoder.") for name in names)
    assert "tokenizer.quantizer.codebook.weight" in names
    assert "tokenizer.quantizer.phi.0.weight" in names
    assert sum(losses.seen[-16:]) < sum(losses.seen[:16])


def test_first_without_quantization_then_kmeans_sets_the_codebook(tiny_photos, tmp_path):
    module = TokenizerModule(**SCRATCH, codebook=CodebookTraining(continuous_share=0.5))
    is_set = Watch(lambda module: bool(module.codebook_is_set))
    books = Watch(codebook_of)
    fit(module, tiny_photos, tmp_path, steps=6, callbacks=[is_set, books])
    assert is_set.seen == [False] * 3 + [True] * 3
    assert torch.equal(books.seen[0], books.seen[2])  # not even decayed
    jump = (books.seen[3] - books.seen[2]).norm()
    assert jump > 10 * (books.seen[4] - books.seen[3]).norm()
    assert len(books.seen[3].unique(dim=0)) == TOKENIZER.vocabulary_size


def test_dead_entries_restart_until_the_last_part_of_the_run(tiny_photos, tmp_path):
    settings = CodebookTraining(continuous_share=0.0, restart_every=2, restart_until=0.5, last_scale_share=0.5)
    module = TokenizerModule(**SCRATCH, codebook=settings, optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-6))
    module.configure_model()
    far = 100.0 + torch.arange(8.0)
    with torch.no_grad():
        module.model.tokenizer.quantizer.codebook.weight[:8] = far[:, None]  # nothing is ever near these
    books = Watch(lambda module: int((codebook_of(module).abs().amax(1) > 50).sum()))
    fit(module, tiny_photos, tmp_path, steps=8, callbacks=[books])
    assert books.seen[0] == 8
    assert books.seen[2] == 0
    assert int(module.codebook_use.counts.sum()) > 0

    module = TokenizerModule(**SCRATCH, codebook=settings, optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-6))
    module.configure_model()
    spoil = Watch(
        lambda module: module.global_step == 5 and module.model.tokenizer.quantizer.codebook.weight.data[:8].fill_(99.0)
    )
    fit(module, tiny_photos, tmp_path, steps=8, callbacks=[spoil])
    assert int((codebook_of(module) > 50).all(1).sum()) == 8


def test_a_restarted_entry_loses_its_momentum(tiny_photos, tmp_path):
    settings = CodebookTraining(
        continuous_share=0.0, restart_every=3, restart_below=1e9, restart_until=0.9, last_scale_share=0.0
    )
    module = TokenizerModule(**SCRATCH, codebook=settings)

    def momentum(module):
        state = module.trainer.optimizers[0].state
        return float(state[module.model.tokenizer.quantizer.codebook.weight]["exp_avg"].abs().sum())

    # the module's own hook runs after the callbacks'; what it left behind shows at the next step's start
    class AtStart(Watch):
        def on_train_batch_end(self, *_): ...

        def on_train_batch_start(self, trainer, pl_module, *_):
            self.seen.append(self.look(pl_module) if pl_module.global_step else None)

    watch = AtStart(momentum)
    fit(module, tiny_photos, tmp_path, steps=6, callbacks=[watch])
    assert watch.seen[2] > 0
    assert watch.seen[3] == 0.0
    assert watch.seen[4] > 0


def test_the_adversarial_term_starts_late_and_serves_both_players(tiny_photos, tmp_path):
    module = TokenizerModule(
        **SCRATCH,
        codebook=CodebookTraining(continuous_share=0.0),
        adversarial=AdversarialLoss(weight=0.5, start_share=0.5, channels=4, layers=2),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-2),
    )
    weights = Watch(lambda module: module.discriminator.layers[0].weight.detach().clone())
    trainer = fit(module, tiny_photos, tmp_path, steps=4, callbacks=[weights])
    assert torch.equal(weights.seen[0], weights.seen[1])
    assert not torch.equal(weights.seen[1], weights.seen[2])
    assert {"train/generator", "train/discriminator"} <= set(trainer.callback_metrics)
    assert not any("discriminator" in name for name in module.export_model().state_dict())


def test_every_term_is_logged_and_weighed(tiny_folders, tiny_photos, tmp_path):
    class FixedError(AbsoluteError):
        name = "constant"

        def __call__(self, decoded, clean):
            return decoded.sum() * 0 + 2.0

    module = TokenizerModule(
        initial_model=str(tiny_folders["tokenizer"]), losses=[AbsoluteError(), FixedError(weight=3.0)]
    )
    logged = fit(module, tiny_photos, tmp_path, steps=1).callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(float(logged["train/l1"]) + 6.0, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"the decoder alone needs a tokenizer"),
        ({"codebook": CodebookTraining()}, r"give model\.tokenizer and model\.scales"),
        ({"tokenizer": TokenizerConfig()}, r"model\.codebook"),
    ],
)
def test_missing_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        TokenizerModule(**settings).configure_model()


def test_other_sizes_than_the_initial_model_are_refused(tiny_folders):
    folder = str(tiny_folders["tokenizer"])
    with pytest.raises(UserError, match="other tokenizer sizes"):
        TokenizerModule(initial_model=folder, tokenizer=TokenizerConfig()).configure_model()
    with pytest.raises(UserError, match="the scales"):
        TokenizerModule(initial_model=folder, scales=(1, 4)).configure_model()
