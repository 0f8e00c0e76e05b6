import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restorevar.cli import main
from restorevar.cli.demo import KINDS, PHOTOS, compare, photo_file
from restorevar.models import pretrained
from tests.conftest import skimage_photo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_photos(monkeypatch, tmp_path):
    """The held-out photos, shrunk, so that an untrained model is quick."""
    for name in PHOTOS:
        with Image.open(skimage_photo(name)) as photo:
            photo.convert("RGB").resize((64, 48)).save(tmp_path / name)
    monkeypatch.setattr("restorevar.cli.demo.photo_file", lambda name: tmp_path / name)


def test_the_photos_are_in_the_package():
    for name in PHOTOS:
        assert photo_file(name).is_file()


def test_scores():
    clean = np.full((32, 32, 3), 100, np.uint8)
    psnr, ssim = compare(clean + 10, clean)
    assert psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert 0.9 < ssim < 1
    assert compare(clean, clean) == (100.0, 1.0)


def test_degrade_restore_score_and_picture(tiny_model_folder, small_photos, tmp_path, capsys):
    output = tmp_path / "demo"
    code = main(["demo", "--model", str(tiny_model_folder), "--output", str(output)])
    assert code == 1  # an untrained model makes photos worse, and the demo says so
    scores = json.loads((output / "scores.json").read_text())
    assert len(scores) == len(KINDS) * len(PHOTOS)
    for entry in scores:
        name = f"{entry['kind']}/{entry['photo']}.png"
        degraded, restored = (np.asarray(Image.open(output / part / name)) for part in ("degraded", "restored"))
        clean = np.asarray(Image.open(tmp_path / f"{entry['photo']}.png"))
        assert degraded.shape == restored.shape == clean.shape
        assert entry["restored_psnr"] == pytest.approx(compare(restored, clean)[0])
        assert entry["degraded_psnr"] == pytest.approx(compare(degraded, clean)[0])
    # an untrained model may make the same tokens of two photos, but not of all
    assert any(entry["other_psnr"] != entry["restored_psnr"] for entry in scores)
    with Image.open(output / "before_after.png") as picture:
        assert picture.width > 6 * 160
        assert picture.height > 5 * 160
    text = capsys.readouterr().err
    assert "another photo's condition" in text
    for kind in (*KINDS, "all"):
        assert f"\n{kind} " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "x", "--config", "y"], "expected --model NAME or --config FILE"),
        (["--model", "x", "--trainer.max_steps=1"], "unknown setting '--trainer.max_steps=1'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_mistakes_are_explained(words, message, capsys):
    assert main(["demo", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_the_shipped_model_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "shipped_models", dict)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "'restorevar-nano' is not part of this installation" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_demo_stage_runs(tmp_path, capsys):
    """The shipped configs through the real command, two steps a stage."""
    config = ROOT / "configs/demo/pipeline.yaml"
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--data.batch_size=1", "--data.num_workers=0"]
    short += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    assert main(["pipeline", "--config", str(config), "--output", str(tmp_path), *short]) == 0
    for stage in ("tokenizer", "transformer", "refiner"):
        assert (tmp_path / stage / "model/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_reaches_its_marks(tmp_path):
    assert main(["demo", "--config", str(ROOT / "configs/demo/pipeline.yaml"), "--output", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())

    def mean(field, kind=None):
        return np.mean([entry[field] for entry in scores if kind in (None, entry["kind"])])

    assert mean("restored_psnr") > mean("degraded_psnr")
    for kind in ("haze", "low_light"):
        assert mean("restored_psnr", kind) >= mean("degraded_psnr", kind) + 2
    assert mean("other_psnr") <= mean("restored_psnr") - 1
