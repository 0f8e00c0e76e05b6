import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from restorevar import RestoreVAR
from restorevar.errors import UserError
from tests.conftest import load_module

SCRIPT = Path(__file__).parents[2] / "scripts" / "ship.py"


@pytest.fixture
def script():
    return load_module(SCRIPT)


def test_the_folder_is_half_as_large_and_names_its_licence(script, tiny_model_folder, tmp_path):
    target = tmp_path / "pretrained" / "some-model"
    line = script.ship(tiny_model_folder, target, [2, 4, 8])
    assert sorted(path.name for path in target.iterdir()) == [
        "LICENSE-WEIGHTS",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    record = json.loads((target / "config.json").read_text())
    assert record["model"]["license"] == "LICENSE-WEIGHTS"
    assert record["weights_sha256"] in line
    assert (target / "README.md").read_text() == (tiny_model_folder / "README.md").read_text()
    assert load_file(target / "model.safetensors")["tokenizer.encoder.conv_in.weight"].dtype == torch.bfloat16
    assert RestoreVAR.from_pretrained(target).image_size == (64, 64)
    assert [path.name for path in target.parent.iterdir()] == ["some-model"]


def test_an_own_card_stays_and_too_large_a_model_changes_nothing(script, tiny_model_folder, tmp_path, monkeypatch):
    target = tmp_path / "some-model"
    script.ship(tiny_model_folder, target)
    (target / "README.md").write_text("# Mine\n")
    script.ship(tiny_model_folder, target)
    assert (target / "README.md").read_text() == "# Mine\n"
    (target / "gate.safetensors").write_bytes(b"of a model shipped before")
    script.ship(tiny_model_folder, target)
    assert not (target / "gate.safetensors").exists()
    before = (target / "config.json").read_bytes()
    monkeypatch.setattr(script, "LIMIT_MB", 0.001)
    with pytest.raises(UserError, match="expected at most"):
        script.ship(tiny_model_folder, target, [2, 4, 8])
    assert (target / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["some-model"]
