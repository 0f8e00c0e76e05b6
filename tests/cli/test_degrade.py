import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from PIL import Image, ImageCms

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


def notes(caplog):
    return [message for message in caplog.messages if message.startswith("note: ")]


def test_16_bits_with_alpha_become_8(tmp_path, caplog):
    deep = np.random.default_rng(0).integers(0, 65536, (30, 40, 4), dtype=np.uint16)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), deep)
    Image.open(CHELSEA).resize((40, 30)).save(tmp_path / "photos" / "b.png")
    assert main(["degrade", str(tmp_path / "photos"), "--kind", "rain", "--output", str(tmp_path / "out")]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert (written[..., 3] == np.rint(deep[..., 3] / 257)).all()
    expected, _ = degrade(np.rint(deep[..., 2::-1] / 257).astype(np.uint8), "rain", 0.5, 0)
    assert (written[..., :3] == expected).all()
    assert (tmp_path / "out" / "b.png.json").is_file()
    assert notes(caplog) == [f"note: {tmp_path / 'photos' / 'a.png'}: 16 bits a channel reduced to 8"]


@pytest.mark.parametrize(("space", "kept"), [(b"RGB ", True), (b"GRAY", False)])
def test_a_profile_for_grey_is_not_given_to_colour(tmp_path, caplog, space, kept):
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = space
    image = Image.open(CHELSEA).resize((40, 30)).convert("RGB" if kept else "L")
    image.save(tmp_path / "a.jpg", icc_profile=bytes(profile))
    assert main(["degrade", str(tmp_path / "a.jpg"), "--kind", "haze", "--output", str(tmp_path / "out")]) == 0
    written = Image.open(tmp_path / "out" / "a.jpg")
    assert written.mode == "RGB"
    assert ("icc_profile" in written.info) == kept
    assert len(notes(caplog)) == (not kept)
    assert kept or "ICC profile left out" in notes(caplog)[0]


def test_what_is_lost_is_told(tmp_path, caplog):
    image = Image.open(CHELSEA).resize((40, 30))
    (tmp_path / "photos").mkdir()
    image.convert("CMYK").save(tmp_path / "photos" / "print.jpg")
    image.save(tmp_path / "photos" / "two.tif", save_all=True, append_images=[image.rotate(180)])
    image.save(tmp_path / "photos" / "usual.png")
    assert main(["degrade", str(tmp_path / "photos"), "--kind", "snow", "--output", str(tmp_path / "out")]) == 0
    assert notes(caplog) == [
        f"note: {tmp_path / 'photos' / 'print.jpg'}: CMYK converted to RGB",
        f"note: {tmp_path / 'photos' / 'two.tif'}: 2 frames, the first is taken",
    ]


def test_distances_are_taken_from_maps(photos, tmp_path, caplog):
    distance = np.linspace(1, 7, 90 * 60, dtype=np.float32).reshape(60, 90)
    distance[:5, :5] = np.nan
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", distance)
    words = ["--kind", "haze", "--severity", "0.8", "--depth", str(tmp_path / "maps"), "--output", str(tmp_path / "o")]
    assert main(["degrade", str(photos), *words]) == 0
    expected, parameters = degrade(np.asarray(Image.open(photos / "a.png")), "haze", 0.8, 0, depth=distance)
    assert (np.asarray(Image.open(tmp_path / "o" / "a.png")) == expected).all()
    assert json.loads((tmp_path / "o" / "a.png.json").read_text()) == parameters
    assert parameters["depth"] == "given"
    assert json.loads((tmp_path / "o" / "deep" / "grey.jpg.json").read_text())["depth"] == "estimated"
    assert notes(caplog) == [f"note: {photos / 'deep' / 'grey.jpg'}: no depth map, distances are guessed"]


def test_a_broken_map_does_not_stop_the_rest(photos, tmp_path, caplog):
    (tmp_path / "maps" / "deep").mkdir(parents=True)
    (tmp_path / "maps" / "a.png").write_bytes(b"no picture")
    Image.new("I;16", (90, 60), 300).save(tmp_path / "maps" / "deep" / "grey.png")
    words = ["--kind", "haze", "--depth", str(tmp_path / "maps"), "--output", str(tmp_path / "out")]
    assert main(["degrade", str(photos), *words]) == 1
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["grey.jpg", "grey.jpg.json"]
    assert "no depth map; expected" in caplog.text


def test_maps_of_other_photos_are_refused(photos, tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "elsewhere.npy", np.ones((60, 90)))
    words = ["--kind", "haze", "--depth", str(tmp_path / "maps"), "--output", str(tmp_path / "out")]
    assert main(["degrade", str(photos), *words]) == 2
    assert "no map has a photo's name; expected a.npy, .png or .tif" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_degradation_that_fails_on_one_photo_does_not_stop_the_rest(photos, tmp_path, caplog, monkeypatch):
    (tmp_path / "weather.py").write_text(
        "def dust(view, severity):\n"
        "    return view.display(), [{'beta': 1}, {'beta': {1}}, {}][view.seed]\n"  # JSON has no sets
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in "bcd":
        (photos / f"{name}.png").write_bytes((photos / "a.png").read_bytes())
    words = ["degrade", str(photos), "--kind", "weather.dust", "--output", str(tmp_path / "out")]
    assert main(words) == 1
    errors = [message for message in caplog.messages if message.startswith("error: ")]
    assert len(errors) == 3
    assert f"{photos / 'b.png'}: TypeError: " in errors[0]
    assert f"{photos / 'd.png'}: IndexError: " in errors[1]
    assert all("\n" not in error for error in errors)
    assert caplog.messages[-1].startswith("2 photos degraded, 3 failed: ")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == [
        "a.png",
        "a.png.json",
        "c.png",
        "c.png.json",
    ]


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

    # parameters count as well
    for photo in (tmp_path / "out").glob("*.png"):
        photo.unlink()
    assert main(words) == 2
    assert ".json" in capsys.readouterr().err


def test_no_photo_without_its_parameters(photos, tmp_path):
    long = tmp_path / f"{'a' * 248}.png"  # 252 bytes: .json is too much
    long.write_bytes(next(photos.glob("*.png")).read_bytes())
    assert main(["degrade", str(long), "--kind", "rain", "--output", str(tmp_path / "out")]) == 1
    assert list((tmp_path / "out").iterdir()) == []


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
        (["--kind", "no_such_package.dust", "--output", "out"], "`PYTHONPATH=. restorevar ...`, or install no_such"),
        (["--kind", "os.getcwd", "--output", "out"], "'os.getcwd' takes ()"),
        (["--contact-sheet", "photos/a.png", "--overwrite"], "photos/a.png is one of the photos given"),
        (["--kind", "haze", "--seed", "-1", "--output", "out"], "--seed is -1"),
        (["--output", "out"], "--kind is missing"),
        (["--kind", "haze"], "nothing to write"),
        (["--depth", "maps", "--contact-sheet", "sheet.png"], "--depth is for photos written to --output"),
        (["--kind", "haze", "--depth", "maps", "--output", "out"], "maps: no such folder; expected depth maps"),
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
