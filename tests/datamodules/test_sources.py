from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from restorevar.datamodules.sources import (
    CleanPhotos,
    FixedDegradations,
    Manifest,
    PairedFolders,
    Photos,
    Source,
    list_photos,
    resolve,
)
from restorevar.errors import UserError

ROOT = Path(".")


def test_clean_photos_have_all_kinds_and_a_fixed_order(photos):
    source = CleanPhotos([str(photos)], {"haze": 1, "snow": 0, "rain": 2}, repeat=3)
    collection = source.collect(ROOT)
    assert collection == source.collect(ROOT)
    assert [Path(record.path).name for record in collection.records] == [f"{i:03}.png" for i in range(12)]
    assert all(record.made and record.kind is None for record in collection.records)
    assert collection.kinds == {"haze": 1.0, "rain": 2.0}
    assert collection.repeat == 3


def test_paired_folders_match_by_name_and_name_the_file_that_is_alone(pairs):
    source = PairedFolders("input", "target", "low_light")
    records = source.collect(pairs).records
    assert {(Path(r.path).name, Path(r.clean).name, r.kind, r.dataset) for r in records} == {
        (f"{i:03}.png", f"{i:03}.png", "low_light", "set") for i in range(5)
    }
    (pairs / "target" / "003.png").rename(pairs / "target" / "elsewhere.png")
    with pytest.raises(UserError, match=r"003\.png.*target"):
        source.collect(pairs)


def test_fixed_degradations_do_not_change_when_photos_are_left_out(photos):
    source = FixedDegradations([str(photos)], ["haze", "rain"], [0.3, 0.7])
    every = source.collect(ROOT).records
    assert len(every) == 12 * 2 * 2
    few = FixedDegradations([str(photos)], ["rain"], [0.7], include=["00[5-6].png"]).collect(ROOT).records
    assert [Path(record.path).name for record in few] == ["005.png", "006.png"]
    assert set(few) <= set(every)
    assert len({record.seed for record in every}) == len(every)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CleanPhotos(["nowhere"]), r"nowhere: no such folder; .* has: .*photos"),
        (CleanPhotos([]), "folders: found none"),
        (CleanPhotos(["photos"], {"fog": 1.0}), "'fog'; expected one of haze"),
        (CleanPhotos(["photos"], {"other": 1.0}), "'other' cannot be made"),
        (CleanPhotos(["photos"], {"haze": 0.0}), "none above 0"),
        (CleanPhotos(["photos"], {"haze": -1.0}), "found -1.0; expected a number from 0"),
        (CleanPhotos(["photos"], severity=(0.9, 0.1)), r"severity: found 0\.9 to 0\.1"),
        (CleanPhotos(["photos"], gamma=(0.0, 2.0)), r"gamma: found 0\.0 to 2\.0"),
        (CleanPhotos(["photos"], repeat=0), "repeat: found 0"),
        (CleanPhotos(["photos"], {"no.such.thing": 1.0}), "no.such.thing"),
        (CleanPhotos(["$NO_SUCH_VARIABLE/photos"]), "not set"),
        (CleanPhotos(["package:no_such_package/data"]), "no package 'no_such_package'"),
        (CleanPhotos(["photos"], include=["*.tiff"]), "no photo in it"),
        (FixedDegradations(["photos"], severities=[1.5]), "found 1.5"),
        (Photos(["photos"], kind="fog"), "'fog'"),
        (Manifest("none.json"), "none.json: no such file"),
    ],
)
def test_mistakes_are_named(photos, source, message):
    with pytest.raises(UserError, match=message):
        source.collect(photos.parent)


def test_paths_may_come_from_the_environment_or_a_package(monkeypatch, photos):
    monkeypatch.setenv("MY_DATA", str(photos.parent))
    assert list_photos(resolve("$MY_DATA/photos", ROOT)) == list_photos(photos)
    assert resolve("photos", photos.parent) == photos
    assert (resolve("package:skimage/data", ROOT) / "astronaut.png").is_file()


def test_sources_can_be_written_in_yaml(photos):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=list[Source])
    text = """
- class_path: restorevar.datamodules.CleanPhotos
  init_args: {folders: [photos], degradations: {haze: 1, my.own.dust: 2.5}, severity: [0, 0.8]}
- class_path: PairedFolders
  init_args: {degraded: a, clean: b, kind: rain}
"""
    train = parser.instantiate_classes(parser.parse_args(["--train", text])).train
    assert train == [
        CleanPhotos(["photos"], {"haze": 1.0, "my.own.dust": 2.5}, severity=(0.0, 0.8)),
        PairedFolders("a", "b", "rain"),
    ]
