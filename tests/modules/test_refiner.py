import pytest
import torch

from restorevar.errors import UserError
from restorevar.models import RefinerConfig, RestoreVAR
from restorevar.modules import RefinerModule
from tests.conftest import REFINER
from tests.modules.stages import changed, fit, make_batch, snapshot


@pytest.fixture
def module(tiny_folders):
    module = RefinerModule(initial_model=str(tiny_folders["transformer"]), refiner=REFINER)
    module.configure_model()
    return module


def test_the_loss_is_l1_between_roll_out_and_clean_latent(module):
    batch, model = make_batch(), module.model
    condition, target = module.encode_pair(batch)
    assert torch.allclose(target, model.tokenizer.encode(batch["clean"]), atol=1e-5)
    loss, refined, latent = module._shared_step(condition, target)
    generated = model.generate(batch["degraded"])
    assert torch.allclose(latent, generated.latent, atol=1e-5)
    assert torch.allclose(refined, generated.refined_latent, atol=1e-5)
    expected = (generated.refined_latent - model.tokenizer.encode(batch["clean"])).abs().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_the_refiner_alone_gets_gradients(module):
    condition, target = module.encode_pair(make_batch())
    module.train()
    module._shared_step(condition, target)[0].backward()
    with_gradient = {name for name, parameter in module.model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in module.model.named_parameters() if name.startswith("refiner.")}


def test_drop_path_of_the_frozen_transformer_is_off(tiny_folders):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    module.configure_model()
    for block in module.model.transformer.blocks:
        block.drop_path.rate = 0.9
    module.train()
    condition, _ = module.encode_pair(make_batch())
    with torch.no_grad():
        first, second = (module.model.roll_out(condition) for _ in range(2))
    assert torch.equal(first.hidden, second.hidden)


def test_only_the_refiner_learns_and_better_than_nothing(module, tiny_photos, tmp_path):
    before = snapshot(module.model)
    trainer = fit(module, tiny_photos, tmp_path, steps=40, limit_val_batches=1.0, val_check_interval=40)
    assert all(name.startswith("refiner.") for name in changed(before, module.model))
    logged = trainer.callback_metrics
    assert float(logged["val/loss"]) < float(logged["val/loss_unrefined"])
    assert {"val/psnr_haze", "val/gain", "val/accuracy_scale_1"} <= set(logged)


def test_a_new_refiner_measures_the_latents_of_the_first_batch_and_an_old_one_keeps_its_own(
    tiny_folders, tiny_photos, tmp_path, monkeypatch
):
    seen = []
    encode_pair = RefinerModule.encode_pair
    monkeypatch.setattr(
        RefinerModule, "encode_pair", lambda self, batch: seen.append(encode_pair(self, batch)) or seen[-1]
    )
    new = RefinerModule(initial_model=str(tiny_folders["transformer"]), refiner=REFINER)
    fit(new, tiny_photos, tmp_path / "new", steps=3)
    measured = seen[0][1].transpose(0, 1).flatten(1).std(1, correction=0)
    assert len(seen) >= 3
    assert torch.allclose(new.model.refiner.latent_deviation, measured, rtol=1e-4)
    old = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    fit(old, tiny_photos, tmp_path / "old", steps=1)
    kept = RestoreVAR.from_pretrained(tiny_folders["refiner"]).refiner.latent_deviation
    assert torch.equal(old.model.refiner.latent_deviation, kept)


@pytest.mark.parametrize("kind", ["attention", "convolution"])
def test_both_kinds_of_refiner(kind, tiny_folders):
    config = RefinerConfig(kind=kind, width=16, heads=2, mlp_width=16, depth=1)
    module = RefinerModule(initial_model=str(tiny_folders["transformer"]), refiner=config)
    module.configure_model()
    loss, _, _ = module._shared_step(*module.encode_pair(make_batch()))
    assert torch.isfinite(loss)


def test_a_tokenizer_alone_is_not_enough(tiny_folders):
    module = RefinerModule(initial_model=str(tiny_folders["tokenizer"]), refiner=REFINER)
    with pytest.raises(UserError, match="holds a tokenizer only; give the export of stage 2"):
        module.configure_model()


def test_sizes_are_needed(tiny_folders):
    with pytest.raises(UserError, match=r"no refiner and model\.refiner gives no sizes"):
        RefinerModule(initial_model=str(tiny_folders["transformer"])).configure_model()


def test_the_tokenizer_and_transformer_are_those_of_the_folder(module, tiny_folders):
    old = RestoreVAR.from_pretrained(tiny_folders["transformer"]).state_dict()
    for name, value in old.items():
        assert torch.equal(module.model.state_dict()[name], value)
