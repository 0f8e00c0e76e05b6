import json
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


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("photos", "maps", "expected"),
    [
        (["a.jpg", "b.jpg"], ["a.npy"], {"a.jpg": "a.npy"}),
        (["a.jpg", "b.jpg"], ["deep/a.png", "b.tif"], {"a.jpg": "deep/a.png", "b.jpg": "b.tif"}),
        (["x/a.jpg", "b.jpg"], ["a.png"], {"x/a.jpg": "a.png"}),
        # sub-folders tell apart what has one name; one of them without a map
        (["x/1.jpg", "y/1.jpg"], ["x/1.png", "y/1.png"], {"x/1.jpg": "x/1.png", "y/1.jpg": "y/1.png"}),
        (["x/1.jpg", "y/1.jpg"], ["y/1.png"], {"y/1.jpg": "y/1.png"}),
        (["x.v1.jpg"], ["x.v1.png", "x.png"], {"x.v1.jpg": "x.v1.png"}),
    ],
)
def test_depth_maps_of_the_photos(tmp_path, photos, maps, expected):
    write(tmp_path / "photos", *photos)
    write(tmp_path / "maps", *maps)
    records = CleanPhotos(["photos"], depth="maps").collect(tmp_path).records
    found = {record.path: record.depth for record in records if record.depth is not None}
    assert found == {
        str(tmp_path / "photos" / photo): str(tmp_path / "maps" / name) for photo, name in expected.items()
    }


@pytest.mark.parametrize(
    ("folders", "photos", "maps", "named"),
    [
        (["photos"], ["1.jpg"], ["x/1.png", "y/1.png"], ["photos/1.jpg", "maps/x/1.png", "maps/y/1.png"]),
        (["photos"], ["1.jpg"], ["1.npy", "1.png"], ["photos/1.jpg", "maps/1.npy", "maps/1.png"]),
        (["photos"], ["x/1.jpg", "y/1.jpg"], ["1.png"], ["photos/x/1.jpg", "photos/y/1.jpg", "maps/1.png"]),
        (["photos"], ["x/1.jpg", "y/1.jpg"], ["x/1.png", "z/1.png"], ["photos/y/1.jpg", "maps/x/1.png", "maps/z/1"]),
        (["photos/x", "photos/y"], ["x/1.jpg", "y/1.jpg"], ["1.png"], ["photos/x/1.jpg", "photos/y/1.jpg"]),
    ],
)
def test_depth_maps_that_could_be_anothers_are_refused(tmp_path, folders, photos, maps, named):
    write(tmp_path / "photos", *photos)
    write(tmp_path / "maps", *maps)
    with pytest.raises(UserError) as caught:
        CleanPhotos(folders, depth="maps").collect(tmp_path)
    assert all(str(tmp_path / name) in str(caught.value) for name in named)


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
        (CleanPhotos(["package:no_such_package.below/data"]), r"no package 'no_such_package\.below' is installed"),
        (CleanPhotos(["package:os.path/data"]), r"no package 'os\.path' is installed"),
        (CleanPhotos(["package:/data"]), "no package '' is installed"),
        (PairedFolders("photos/000.png", "photos"), r"photos.000\.png: a file; expected a folder of images"),
        (PairedFolders("photos", "photos/000.png"), r"photos.000\.png: a file; expected a folder of images"),
        (CleanPhotos(["."], include=["*.tiff"]), "none of its 12 photos matches `include` .*tiff.*: 000.png, .*, ..."),
        (CleanPhotos(["photos"], include=["0000.png"]), r"matches `include` \(0000.png\); it has: 000.png, 001.png"),
        (CleanPhotos(["empty"]), "no photo in it"),
        (FixedDegradations(["photos"], severities=[1.5]), "found 1.5"),
        (FixedDegradations(["photos"], severities=[]), "severities: found none"),
        (FixedDegradations(["photos"], limit=0), "limit: found 0; expected 1 or more, or null"),
        (CleanPhotos(["photos"], limit=-1), "limit: found -1; expected 1 or more"),
        (PairedFolders("photos", "photos", limit=0), "limit: found 0"),
        (Photos(["photos"], kind="fog"), "'fog'"),
        (Manifest("none.json"), "none.json: no such file"),
    ],
)
def test_mistakes_are_named(photos, source, message):
    (photos.parent / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        source.collect(photos.parent)


def test_of_two_partners_the_one_of_the_same_ending_is_taken(tmp_path):
    write(tmp_path, "input/a.png", "input/a.jpg", "target/a.png", "target/a.jpg", "input/b.bmp", "target/b.png")
    records = PairedFolders("input", "target").collect(tmp_path).records
    found = {(Path(record.path).name, Path(record.clean).name) for record in records}
    assert found == {("a.png", "a.png"), ("a.jpg", "a.jpg"), ("b.bmp", "b.png")}
    write(tmp_path, "target/b.jpg")
    with pytest.raises(UserError, match=r"b\.bmp: found two clean images, .*b\.jpg and .*b\.png; keep one"):
        PairedFolders("input", "target").collect(tmp_path)


def test_photos_of_one_name_in_two_folders_are_degraded_differently(tmp_path):
    write(tmp_path, "x/1.png", "y/1.png")
    first, second = FixedDegradations([str(tmp_path)], ["rain"]).collect(ROOT).records
    assert first.seed != second.seed
    (alone,) = FixedDegradations([str(tmp_path)], ["rain"], include=["1.png"], limit=1).collect(ROOT).records
    assert alone == first


def test_fixed_degradations_take_depth_maps(tmp_path):
    write(tmp_path, "photos/1.png", "photos/2.png", "maps/2.npy")
    records = FixedDegradations(["photos"], ["haze"], depth="maps").collect(tmp_path).records
    assert [record.depth for record in records] == [None, str(tmp_path / "maps" / "2.npy")]


def test_links_to_folders_are_followed_and_rings_are_not(tmp_path):
    write(tmp_path, "elsewhere/deep/b.png", "photos/a.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "ring").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert [path.name for path in list_photos(tmp_path / "photos")] == ["a.png", "b.png"]


def test_hidden_folders_are_left_out(tmp_path):
    write(tmp_path, "photos/a.png", "photos/.trash/b.png", "photos/.hidden.png")
    assert [path.name for path in list_photos(tmp_path / "photos")] == ["a.png"]


def test_the_folder_itself_has_a_name(tmp_path):
    write(tmp_path, "photos/inner/a.png")
    for folder, name in ((".", "inner"), ("..", "photos")):
        (record,) = CleanPhotos([folder]).collect(tmp_path / "photos/inner").records
        assert record.dataset == name


def test_manifests_of_test_sets_are_not_for_training(tmp_path):
    write(tmp_path, "a.png", "b.png")
    rows = [
        {"image_path": "a.png", "target_path": "b.png", "dataset": name, "degradation": "haze"}
        for name in ("mine", "SOTS-indoor")
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    testing = Manifest("pairs.json").collect(tmp_path).testing
    assert testing == f"{tmp_path}/pairs.json lists pairs of SOTS-indoor, a test set"
    assert Manifest("pairs.json", datasets=["mine"]).collect(tmp_path).testing is None
    with pytest.raises(UserError, match="no pair of data set 'SOTS'; it has: SOTS-indoor, mine"):
        Manifest("pairs.json", datasets=["mine", "SOTS"]).collect(tmp_path)


def test_two_links_to_one_folder_are_two_folders(tmp_path):
    write(tmp_path, "gt/1.png", "degraded/light/1.png", "degraded/heavy/1.png", "maps/1.npy")
    for folder, target in (("clean", "gt"), ("depth", "maps")):
        for link in ("light", "heavy"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / link).symlink_to(tmp_path / target, target_is_directory=True)
    pairs = PairedFolders("degraded", "clean").collect(tmp_path).records
    expected = [(f"degraded/{link}/1.png", f"clean/{link}/1.png") for link in ("heavy", "light")]
    assert [(record.path, record.clean) for record in pairs] == [
        (str(tmp_path / degraded), str(tmp_path / clean)) for degraded, clean in expected
    ]
    photos = CleanPhotos(["degraded"], depth="depth").collect(tmp_path).records
    assert [record.depth for record in photos] == [str(tmp_path / f"depth/{link}/1.npy") for link in ("heavy", "light")]


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
