import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from restorevar.callbacks import RestoredPhotoWriter
from restorevar.datamodules.sources import Record
from restorevar.errors import UserError
from restorevar.modules.restoration import RestoredPhoto
from restorevar.restoration.photo import read_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def trainer(folder: Path, paths: list[str]):
    records = [Record(path, None, "rain", "set") for path in paths]
    loader = SimpleNamespace(dataset=SimpleNamespace(records=records))
    return SimpleNamespace(default_root_dir=str(folder / "run"), predict_dataloaders=loader, test_dataloaders=loader)


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Two photos of one name in different folders, one of 16 bits, one turned by its EXIF entry."""
    import cv2

    made = [
        tmp_path / "photos" / "a" / "x.png",
        tmp_path / "photos" / "b" / "x.png",
        tmp_path / "photos" / "turned.jpg",
    ]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(made[0])
    cv2.imwrite(str(made[1]), PIXELS.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(PIXELS.swapaxes(0, 1))).save(made[2], exif=exif)
    return [str(path) for path in made]


def test_predictions_keep_name_place_format_and_depth(tmp_path, paths):
    writer, fake = RestoredPhotoWriter(), trainer(tmp_path, paths)
    writer.on_predict_start(fake, None)
    restored = 255 - PIXELS
    for path in paths:
        photo = RestoredPhoto(path, "set", "rain", None, PIXELS, restored)
        writer.write_on_batch_end(fake, None, [photo], None, None, 0, 0)
    root = tmp_path / "run" / "restored" / "set"
    files = {str(path.relative_to(root)) for path in root.rglob("*.*")}
    assert files == {"a/x.png", "b/x.png", "turned.jpg"}
    assert np.array_equal(read_rgb(root / "a" / "x.png"), restored)
    assert Image.open(root / "turned.jpg").getexif().get(274, 1) == 1
    assert Image.open(root / "turned.jpg").size == (30, 20)
    from restorevar.restoration.photo import read_photo

    deep = read_photo(root / "b" / "x.png").pixels
    assert deep.dtype == np.uint16
    assert np.array_equal(deep, restored.astype(np.uint16) * 257)


def test_tested_photos_are_png_and_say_how_they_were_degraded(tmp_path, paths):
    writer, fake = RestoredPhotoWriter(str(tmp_path / "kept")), trainer(tmp_path, paths)
    writer.on_test_start(fake, None)
    photo = RestoredPhoto(paths[2], "set", "rain", None, PIXELS, PIXELS, PIXELS)
    made = [dataclasses.replace(photo, severity=severity) for severity in (0.25, 0.5)]
    missing = dataclasses.replace(photo, path=paths[0], restored=None)
    writer.on_test_batch_end(fake, None, {"photos": [photo, *made, missing]}, None, 0)
    files = sorted(path.name for path in (tmp_path / "kept" / "set").rglob("*.*"))
    assert files == ["turned.png", "turned_rain_0.25.png", "turned_rain_0.50.png"]
    assert np.array_equal(read_rgb(tmp_path / "kept" / "set" / "turned.png"), PIXELS)


def test_a_photo_that_was_given_is_never_written_over(tmp_path, paths):
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        writer, fake = RestoredPhotoWriter(str(folder)), trainer(tmp_path, paths)
        dataset = fake.predict_dataloaders.dataset
        # the folder's name, as `Photos` calls it
        dataset.records = [dataclasses.replace(record, dataset="photos") for record in dataset.records]
        writer.on_predict_start(fake, None)
        before = Path(paths[0]).read_bytes()
        with pytest.raises(UserError, match=r"x\.png is a photo that was given"):
            writer.write_on_batch_end(
                fake, None, [RestoredPhoto(paths[0], "photos", "rain", None, PIXELS, PIXELS)], None, None, 0, 0
            )
        assert Path(paths[0]).read_bytes() == before


def test_photos_of_one_name_are_all_kept(tmp_path):
    writer, paths = (
        RestoredPhotoWriter(str(tmp_path / "kept")),
        [str(tmp_path / name) for name in ("a.png", "a.jpg", "a_2.jpg")],
    )
    fake = trainer(tmp_path, paths)
    writer.on_test_start(fake, None)
    photos = [RestoredPhoto(path, "set", "rain", None, PIXELS, PIXELS, PIXELS) for path in paths]
    writer.on_test_batch_end(fake, None, {"photos": photos}, None, 0)
    assert sorted(path.name for path in (tmp_path / "kept/set").iterdir()) == ["a.png", "a_2.png", "a_2_2.png"]


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", "."])
def test_the_name_of_a_set_leads_nowhere_else(tmp_path, paths, name):
    writer, fake = RestoredPhotoWriter(str(tmp_path / "kept")), trainer(tmp_path, paths)
    fake.predict_dataloaders.dataset.records = [Record(paths[0], None, "rain", name)]
    writer.on_predict_start(fake, None)
    writer.write_on_batch_end(
        fake, None, [RestoredPhoto(paths[0], name, "rain", None, PIXELS, PIXELS)], None, None, 0, 0
    )
    assert [path.name for path in (tmp_path / "kept").rglob("*.png")] == ["x.png"]


def test_folders_may_be_relative_and_absolute(tmp_path, paths, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed = ["photos/a/x.png", *paths[1:]]
    writer, fake = RestoredPhotoWriter(), trainer(tmp_path, mixed)
    writer.on_predict_start(fake, None)
    writer.write_on_batch_end(
        fake, None, [RestoredPhoto(mixed[0], "set", "rain", None, PIXELS, PIXELS)], None, None, 0, 0
    )
    assert (tmp_path / "run/restored/set/a/x.png").is_file()


def test_photos_in_shards_have_no_file_to_be_written_like(tmp_path):
    with pytest.raises(UserError, match="is a photo in a shard; expected files"):
        RestoredPhotoWriter().on_predict_start(trainer(tmp_path, ["000000.tar#512+25172#0.degraded"]), None)
