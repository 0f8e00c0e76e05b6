import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from restorevar import RestoreVAR
from restorevar.modules.gate import error_terms
from tests.conftest import load_module
from tests.models.test_gate import noisy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_module(ROOT / "scripts" / "refit_gate.py")


def remembered(restored: torch.Tensor) -> dict[str, torch.Tensor]:
    """A checkpoint of photos that were good already, and of what a model made of them."""
    from restorevar.models.gate import photo_statistics

    degraded = noisy(16, 32)
    rows = torch.cat([error_terms(degraded, restored, degraded), photo_statistics(degraded, restored)], dim=1)
    return {"gate_memory": rows}


def run(script, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["refit_gate.py", *map(str, words)])
    script.main()


def test_a_gate_learns_to_keep_good_photos(script, tiny_folders, tmp_path, monkeypatch, capsys):
    photos = noisy(16, 32)
    torch.save(remembered(photos * 0.5), tmp_path / "first.ckpt")
    torch.save(remembered(photos * 0.5 + 0.5), tmp_path / "second.ckpt")
    checkpoints = (tmp_path / "first.ckpt", tmp_path / "second.ckpt")
    run(script, monkeypatch, tiny_folders["refiner"], *checkpoints, "--output", tmp_path / "model", "--steps", 200)
    assert "32 photos" in capsys.readouterr().out
    gate = RestoreVAR.from_pretrained(tmp_path / "model").gate
    assert gate is not None
    with torch.no_grad():
        kept = gate(photos - 1, photos * 2 - 1, 1.0)
    assert (kept - (photos * 2 - 1)).square().mean() < 0.1 * (photos - 1 - (photos * 2 - 1)).square().mean()


def test_the_terms_of_the_weights_come_along(script, tiny_folders, tmp_path, monkeypatch):
    model = RestoreVAR.from_pretrained(tiny_folders["refiner"])
    model.config = dataclasses.replace(model.config, license="TERMS.txt")
    model.save_pretrained(tmp_path / "given")
    (tmp_path / "given" / "TERMS.txt").write_text("free")
    torch.save(remembered(noisy(16, 32) * 0.5), tmp_path / "last.ckpt")
    run(script, monkeypatch, tmp_path / "given", tmp_path / "last.ckpt", "--output", tmp_path / "model", "--steps", 1)
    assert (tmp_path / "model" / "TERMS.txt").read_text() == "free"


def test_a_checkpoint_of_another_version(script, tiny_folders, tmp_path, monkeypatch, capsys):
    torch.save({"gate_memory": torch.zeros(4, 66)}, tmp_path / "old.ckpt")
    with pytest.raises(SystemExit, match="2"):
        run(script, monkeypatch, tiny_folders["refiner"], tmp_path / "old.ckpt", "--output", tmp_path / "model")
    assert "remembers 66 numbers a photo, from another version" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_another_stage(script, tiny_folders, tmp_path, monkeypatch, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tiny_folders["refiner"], tmp_path / "other.ckpt", "--output", tmp_path / "model")
    assert "remembers no photos" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
