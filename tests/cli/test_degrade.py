import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from restorevar.cli import main
from restorevar.datamodules.degradations import degrade

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    image = Image.open(CHELSEA).resize((90, 60))
    image.save(folder / "a.png")
    image.convert("L").save(folder / "deep" / "grey.jpg")
    return folder


def test_writes_the_photo_and_its_parameters(photos, tmp_path):
    words = ["--kind", "haze", "--severity", "0.6", "--seed", "7", "--output", str(tmp_path / "out")]
    assert main(["degrade", str(photos), *words]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    expected, parameters = degrade(np.asarray(Image.open(photos / "a.png")), "haze", 0.6, 7)
    assert (written == expected).all()
    assert json.loads((tmp_path / "out" / "a.png.json").read_text()) == parameters
    assert json.loads((tmp_path / "out" / "deep" / "grey.jpg.json").read_text())["seed"] == 8
    assert Image.open(tmp_path / "out" / "deep" / "grey.jpg").size == (90, 60)


def test_alpha_and_orientation_are_kept(tmp_path):
    image = Image.open(CHELSEA).resize((40, 30)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((40, 30)))
    image.save(tmp_path / "alpha.png")
    turned = Image.Exif()
    turned[274] = 6
    image.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    words = ["degrade", str(tmp_path / "alpha.png"), str(tmp_path / "turned.jpg"), "--kind", "snow"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert (np.asarray(Image.open(tmp_path / "out" / "alpha.png"))[..., 3] == np.asarray(image)[..., 3]).all()
    assert Image.open(tmp_path / "out" / "turned.jpg").size == (30, 40)


def test_a_broken_photo_does_not_stop_the_rest(photos, tmp_path, caplog):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    (photos / "empty.png").write_bytes(b"")
    assert main(["degrade", str(photos), "--kind", "rain", "--output", str(tmp_path / "out")]) == 1
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*g")) == ["a.png", "grey.jpg"]
    assert "broken.png" in caplog.text
    assert "empty.png" in caplog.text


def test_results_are_not_replaced_unasked(photos, tmp_path, capsys):
    words = ["degrade", str(photos), "--kind", "rain", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_contact_sheet(photos, tmp_path):
    sheet = tmp_path / "sheets" / "all.png"
    assert main(["degrade", str(photos), "--contact-sheet", str(sheet)]) == 0
    width, height = Image.open(sheet).size
    assert width > 5 * 240
    assert height > 6 * 160
    assert sorted(path.name for path in sheet.parent.iterdir()) == ["all.png"]


def test_a_severity_that_is_no_number_names_the_range(photos, capsys):
    assert main(["degrade", str(photos), "--kind", "haze", "--severity", "nan", "--output", "out"]) == 2
    assert "severity: got 'nan'; expected float, 0 (nothing) to 1\n" in capsys.readouterr().err


def test_a_full_disk_is_one_line_a_photo(photos, tmp_path, monkeypatch, caplog, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restorevar.restoration.photo._write_8", full)
    words = ["degrade", str(photos), "--kind", "rain", "--output", str(tmp_path / "out")]
    assert main(words) == 1
    errors = [message for message in caplog.messages if message.startswith("error: ")]
    assert len(errors) == 2
    assert all("No space left" in error and str(photos) in error for error in errors)
    assert main(["degrade", str(photos), "--contact-sheet", str(tmp_path / "sheet.png")]) == 2
    assert "sheet.png cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kind", "fog", "--output", "out"], "unknown degradation 'fog'"),
        (["--kind", "haze", "--severity", "2", "--output", "out"], "--severity is 2"),
        (["--kind", "os.getcwd", "--output", "out"], "'os.getcwd' takes ()"),
        (["--contact-sheet", "photos/a.png", "--overwrite"], "photos/a.png is one of the photos given"),
        (["--kind", "haze", "--seed", "-1", "--output", "out"], "--seed is -1"),
        (["--output", "out"], "--kind is missing"),
        (["--kind", "haze"], "nothing to write"),
        (["--contact-sheet", "sheet.gif"], "expected a name ending in"),
    ],
)
def test_mistakes_are_one_line(words, told, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["degrade", str(photos), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
