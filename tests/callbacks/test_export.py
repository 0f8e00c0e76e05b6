import dataclasses
import json

import pytest
import torch

from restorevar.callbacks import ExponentialMovingAverage, ExportModel
from restorevar.models import RestoreVAR
from restorevar.modules import RefinerModule
from tests.modules.stages import fit


def module(tiny_folders):
    return RefinerModule(
        initial_model=str(tiny_folders["refiner"]), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1)
    )


def test_the_folder_holds_the_trained_model_and_a_card(tiny_folders, tiny_photos, tmp_path):
    trained = module(tiny_folders)
    fit(trained, tiny_photos, tmp_path, callbacks=[ExportModel(license="MIT")])
    exported = RestoreVAR.from_pretrained(tmp_path / "model")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value)
    assert exported.config.license == "MIT"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`RefinerModule`" in card
    assert "optimizer steps: 3" in card
    assert "Own size 32 x 32" in card
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"]["license"] == "MIT"


def test_averaged_weights_are_exported(tiny_folders, tiny_photos, tmp_path):
    def run(folder, callbacks):
        torch.manual_seed(0)
        fit(module(tiny_folders), tiny_photos, folder, steps=3, callbacks=[*callbacks, ExportModel()])
        return RestoreVAR.from_pretrained(folder / "model").refiner.state_dict()

    plain = run(tmp_path / "plain", [])
    frozen_average = run(tmp_path / "averaged", [ExponentialMovingAverage(decay=1.0)])
    first_step = run_one(tiny_folders, tiny_photos, tmp_path / "one")
    # with a decay of 1 the average stays at the first step's weights
    assert any(not torch.equal(plain[name], frozen_average[name]) for name in plain)
    for name, value in first_step.items():
        assert torch.allclose(frozen_average[name], value, atol=1e-6), name


def test_averages_leave_frozen_weights_as_they_are(tiny_folders, tiny_photos, tmp_path):
    average = ExponentialMovingAverage(decay=0.9)
    fit(module(tiny_folders), tiny_photos, tmp_path, steps=6, callbacks=[average, ExportModel()])
    given, exported = (
        RestoreVAR.from_pretrained(f).state_dict() for f in (tiny_folders["refiner"], tmp_path / "model")
    )
    changed = {name.split(".")[0] for name, value in exported.items() if not torch.equal(value, given[name])}
    assert changed == {"refiner"}


def run_one(tiny_folders, tiny_photos, folder):
    from restorevar.optimization import ConstantSchedule

    torch.manual_seed(0)
    one = module(tiny_folders)
    one.schedule = ConstantSchedule()
    fit(one, tiny_photos, folder, steps=1, callbacks=[ExportModel()])
    return RestoreVAR.from_pretrained(folder / "model").refiner.state_dict()


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}])
def test_a_trial_exports_nothing(settings, tiny_folders, tiny_photos, tmp_path):
    fit(module(tiny_folders), tiny_photos, tmp_path, callbacks=[ExportModel()], **settings)
    assert not (tmp_path / "model").exists()


def test_another_folder(tiny_folders, tiny_photos, tmp_path):
    fit(module(tiny_folders), tiny_photos, tmp_path, steps=1, callbacks=[ExportModel(folder=str(tmp_path / "there"))])
    assert (tmp_path / "there" / "model.safetensors").exists()
    assert not (tmp_path / "model").exists()


def test_another_schedule_and_the_licence_of_the_first_model(tiny_folders, tiny_photos, tmp_path):
    licensed = tmp_path / "licensed"
    initial = RestoreVAR.from_pretrained(tiny_folders["refiner"])
    initial.config = dataclasses.replace(initial.config, license="LICENSE-WEIGHTS")
    initial.save_pretrained(licensed)
    (licensed / "LICENSE-WEIGHTS").write_text("for research\n")
    trained = RefinerModule(initial_model=str(licensed), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    fit(trained, tiny_photos, tmp_path / "run", steps=1, callbacks=[ExportModel(scales=(2, 4, 8))])
    exported = tmp_path / "run" / "model"
    assert RestoreVAR.from_pretrained(exported).image_size == (64, 64)
    assert "Own size 64 x 64" in (exported / "README.md").read_text()
    assert (exported / "LICENSE-WEIGHTS").read_text() == "for research\n"
