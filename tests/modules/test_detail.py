import torch

from restorevar.models import DetailConfig
from restorevar.modules import DetailModule
from tests.modules.stages import changed, fit, make_batch, snapshot

DETAIL = DetailConfig(width=16, blocks=1)


def make_module(tiny_folders, **settings) -> DetailModule:
    module = DetailModule(initial_model=str(tiny_folders["refiner"]), detail=DETAIL, **settings)
    module.configure_model()
    return module


def test_the_path_alone_learns_and_fidelity_0_stays_what_it_was(tiny_folders, tiny_photos, tmp_path):
    module = make_module(tiny_folders)
    before, degraded = snapshot(module.model), make_batch()["degraded"]
    plain = module.model.eval().generate(degraded, fidelity=0.0).image
    trainer = fit(module, tiny_photos, tmp_path, steps=20, limit_val_batches=1.0, val_check_interval=20)
    assert all(name.startswith("detail.") for name in changed(before, module.model))
    assert torch.equal(module.model.eval().generate(degraded, fidelity=0.0).image, plain)
    logged = trainer.callback_metrics
    assert float(logged["val/psnr"]) > float(logged["val/psnr_fidelity_0"])


def test_whole_fidelity_alone(tiny_folders):
    module = make_module(tiny_folders, full_fidelity_share=1.0)
    assert module._fidelity(make_batch(size=8)).tolist() == [1.0] * 8


def test_fidelities_between(tiny_folders):
    module = make_module(tiny_folders, full_fidelity_share=0.25)
    drawn = module._fidelity(make_batch(size=400))
    assert 60 < int((drawn == 1).sum()) < 140
    assert 0 <= float(drawn.min()) < 0.05
    assert 0.3 < float(drawn[drawn < 1].mean()) < 0.7


def test_a_model_without_refiner_will_do(tiny_folders):
    module = DetailModule(initial_model=str(tiny_folders["transformer"]), detail=DETAIL)
    module.configure_model()
    assert module.model.detail is not None
