import pytest
import torch

from restorevar.errors import UserError
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


def test_the_refiner_can_learn_along(tiny_folders, tiny_photos, tmp_path):
    module = make_module(tiny_folders, train_refiner=True, zero_fidelity_share=0.25)
    before = snapshot(module.model)
    fit(module, tiny_photos, tmp_path, steps=2)
    assert {name.split(".")[0] for name in changed(before, module.model)} == {"detail", "refiner"}


@pytest.mark.parametrize(("settings", "fidelity"), [({"full_fidelity_share": 1.0}, 1.0), ({"zero": 1.0}, 0.0)])
def test_shares_of_whole_and_no_fidelity(settings, fidelity, tiny_folders):
    if "zero" in settings:
        settings = {"full_fidelity_share": 0.0, "zero_fidelity_share": 1.0}
    module = make_module(tiny_folders, **settings)
    assert module._fidelity(make_batch(size=8)).tolist() == [fidelity] * 8


def test_fidelities_between(tiny_folders):
    module = make_module(tiny_folders, full_fidelity_share=0.25, zero_fidelity_share=0.25)
    drawn = module._fidelity(make_batch(size=400))
    assert 60 < int((drawn == 1).sum()) < 140
    assert 60 < int((drawn == 0).sum()) < 140
    assert float(drawn.min()) == 0
    assert float(drawn.max()) == 1


def test_shares_beyond_the_whole_are_refused(tiny_folders):
    with pytest.raises(UserError, match=r"full_fidelity_share 0.8 and zero_fidelity_share 0.3 are more than 1"):
        make_module(tiny_folders, full_fidelity_share=0.8, zero_fidelity_share=0.3)


def test_a_refiner_is_needed_to_train_it(tiny_folders):
    module = DetailModule(initial_model=str(tiny_folders["transformer"]), detail=DETAIL, train_refiner=True)
    with pytest.raises(UserError, match="needs a refiner, and the initial model has none; start from stage 3"):
        module.configure_model()
