"""Short forms of docs/finetune.md through the real commands."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from restorevar.models import DetailConfig, RestoreVAR
from tests.conftest import load_module

PATH = Path(__file__).parents[2] / "benchmarks" / "finetune.py"
SHORT = [
    "--transformer.model.move_to_scales=[1,1,2]",
    "--detail.export.scales=[1,2,4]",
    "--data.image_size=16",
    "--gate.data.image_size=32",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.precision=32-true",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def benchmark(monkeypatch):
    module = load_module(PATH)
    monkeypatch.setattr(module, "TRAIN", 2)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    return module


@pytest.fixture
def licensed_model(tiny_model_folder, tmp_path):
    """A tiny model with a detail path and a licence of its weights."""
    given = RestoreVAR.from_pretrained(tiny_model_folder)
    config = dataclasses.replace(given.config, detail=DetailConfig(width=16, blocks=1), license="LICENSE-WEIGHTS")
    model = RestoreVAR(config)
    model.load_state_dict(given.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "licensed")
    (tmp_path / "licensed" / "LICENSE-WEIGHTS").write_text("for research\n")
    return tmp_path / "licensed"


@pytest.mark.parametrize(("case", "kind"), [("pairs", "other"), ("degradation", "dust")])
def test_fine_tuning(case, kind, benchmark, licensed_model, tiny_photos, tmp_path):
    photos = sorted(tiny_photos.iterdir())
    table = benchmark.finetune(case, photos[:3], photos[3:], tmp_path / "out", str(licensed_model), SHORT)
    kinds = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    assert sorted(kinds) == sorted([kind, "haze", "rain", "snow", "low_light", "motion_blur"])

    folder = tmp_path / "out" / case / "gate" / "model"
    before, after = RestoreVAR.from_pretrained(licensed_model), RestoreVAR.from_pretrained(folder)
    assert after.gate is not None
    assert dataclasses.replace(after.config, gate=None) == before.config  # its own size again, and the licence
    assert (folder / "LICENSE-WEIGHTS").read_text() == "for research\n"
    changed = {
        name.split(".")[0]
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert changed == {"transformer", "refiner", "detail"}
    assert "gain_other" in (folder / "README.md").read_text()  # validated on what is new, too
    assert json.loads((folder / "config.json").read_text())["model"]["license"] == "LICENSE-WEIGHTS"
    settings = {name: (tmp_path / "out" / case / name / "config.yaml").read_text() for name in ("detail", "gate")}
    assert "ExponentialMovingAverage" in settings["detail"]
    assert (
        "ExponentialMovingAverage" not in settings["gate"]
    )  # from nothing in a hundred steps: averages would lag behind


@pytest.mark.parametrize(("case", "place"), [("pairs", "clean"), ("degradation", "")])
def test_photos_of_one_name_are_all_there(case, place, benchmark, tmp_path):
    photos = [tmp_path / folder / "1.png" for folder in "abc"]
    for color, path in enumerate(photos):
        path.parent.mkdir()
        Image.new("RGB", (4, 4), (color, 0, 0)).save(path)
    benchmark.prepare(case, photos, photos[:1], tmp_path / "data")
    prepared = sorted((tmp_path / "data" / "train" / place).glob("*.png"))
    assert [Image.open(path).getpixel((0, 0))[0] for path in prepared] == [0, 1]
    assert len(list((tmp_path / "data" / "val" / place).glob("*.png"))) == 1
