import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from restorevar.errors import UserError
from tests.conftest import load_module

SCRIPT = Path(__file__).parents[2] / "scripts" / "blind_test.py"


@pytest.fixture
def blind_test():
    return load_module(SCRIPT)


def test_half_is_real_and_all_crops_are_alike(blind_test, tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("real/lowlight/a.png", "clean/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        photo = cv2.resize(random.integers(0, 256, (12, 16, 3), dtype=np.uint8), (400, 330))
        Image.fromarray(photo).save(tmp_path / name)
    blind_test.make(tmp_path / "real", tmp_path / "clean", tmp_path / "out", count=14, seed=1)
    key = json.loads((tmp_path / "out" / "key.json").read_text())["low_light"]
    ours = [number for number, about in key.items() if about["synthetic"]]
    assert len(key) == 14
    assert len(ours) == 7
    sheets = sorted((tmp_path / "out" / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["low_light_1.png", "low_light_2.png"]
    assert Image.open(sheets[0]).size == Image.open(sheets[1]).size

    (tmp_path / "answers.json").write_text(json.dumps({"low_light": dict.fromkeys(ours[:-1], "too dark")}))
    blind_test.score(tmp_path / "out", tmp_path / "answers.json")
    assert "| low_light | 14 | 93 % | 1 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["make", "nowhere", ".", "out"], ["score", "nowhere", "no.json"]])
def test_mistakes_are_one_line(blind_test, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["blind_test.py", *words])
    with pytest.raises(SystemExit, match="2"):
        blind_test.main()
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_turned_photos_stand_upright(blind_test, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("real/haze/a.jpg", "clean/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (64, 48), "grey").save(tmp_path / name, exif=exif)
    shapes, cropped = [], blind_test.cropped
    monkeypatch.setattr(blind_test, "cropped", lambda photo, *rest: shapes.append(photo.shape) or cropped(photo, *rest))
    blind_test.make(tmp_path / "real", tmp_path / "clean", tmp_path / "out", count=2, seed=0)
    assert shapes == [(64, 48, 3)] * 2


def test_a_folder_without_photos_is_named(blind_test, tmp_path):
    for name in ("real/haze", "clean"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="haze: no photo in it"):
        blind_test.make(tmp_path / "real", tmp_path / "clean", tmp_path / "out", count=2, seed=0)
