import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from restorevar.datamodules.manifest import (
    FIELDS,
    PUBLISHED_KINDS,
    Row,
    check_rows,
    find_twins,
    fingerprints,
    read_manifest,
    write_manifest,
)
from restorevar.datamodules.sources import Manifest
from restorevar.errors import UserError

from .conftest import write_photos


def written(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_published_lists_are_read_as_they_are(tmp_path):
    entries = [
        {"image_path": f"in/{i}.png", "target_path": f"out/{i}.png", "degradation": label, "dataset": "S"}
        for i, label in enumerate(PUBLISHED_KINDS)
    ]
    rows = read_manifest(written(tmp_path / "m.json", entries))
    assert [row.kind for row in rows] == list(PUBLISHED_KINDS.values())
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(entries)
    assert read_manifest(tmp_path / "m.csv") == rows


def test_paths_are_relative_to_the_manifest_or_to_a_root(pairs):
    entry = {"image_path": "input/000.png", "target_path": "target/000.png", "degradation": "Low-light", "dataset": "S"}
    written(pairs / "m.json", [entry])
    (record,) = Manifest("m.json").collect(pairs).records
    assert Path(record.path) == pairs / "input/000.png"
    elsewhere = pairs.parent / "lists"
    elsewhere.mkdir()
    written(elsewhere / "m.json", [entry])
    (record,) = Manifest(str(elsewhere / "m.json"), root=str(pairs)).collect(Path()).records
    assert Path(record.clean) == pairs / "target/000.png"


GOOD = {"image_path": "a.png", "target_path": "b.png", "degradation": "Haze", "dataset": "S"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"m\.json: not JSON"),
        ("{}", r"m\.json: found a JSON dict; expected a list"),
        ("[" * 200_000, r"m\.json: not JSON \(maximum recursion depth"),
        (json.dumps([{**GOOD, "image_path": "\udce9.png"}]), r"row 1: 'image_path' is '\\udce9"),
        ("[]", r"m\.json: no row"),
        (json.dumps([GOOD, 3]), r"m\.json, row 2: found int; expected an object with"),
        (json.dumps([GOOD, {**GOOD, "degradation": "Fog"}]), r"m\.json, row 2: degradation 'Fog'; expected one of"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "target_path"}]), r"row 1: 'target_path' is None"),
        (json.dumps([{**GOOD, "image_path": ""}]), r"row 1: 'image_path' is ''"),
        (json.dumps([{**GOOD, "image_path": 5}]), r"row 1: 'image_path' is 5"),
    ],
)
def test_faults_name_file_and_row(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "m.json")


def test_csv_faults_name_the_row(tmp_path):
    (tmp_path / "m.csv").write_text("image_path,target_path,degradation\na,b,Haze\n")
    with pytest.raises(UserError, match="no column dataset"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("image_path,target_path,degradation,dataset\na,b,Haze,S\na,b,Mist,S\n")
    with pytest.raises(UserError, match="row 2: degradation 'Mist'"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("image_path;target_path;degradation;dataset\na;b;Haze;S\n")
    with pytest.raises(UserError, match="separated by commas, not by ';'"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("image_path, target_path , degradation,dataset\na,b,Haze,S\n")
    assert read_manifest(tmp_path / "m.csv") == [Row("a", "b", "haze", "S")]


@pytest.mark.parametrize("length", [10, 200_000])
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path, length):
    rows = "a,b,Haze,S\n" * 3 + 'a,b,Haze,"S\n' + "a,b,Haze,S\n" * (length // 10)
    (tmp_path / "m.csv").write_text("image_path,target_path,degradation,dataset\n" + rows)
    with pytest.raises(UserError, match=r"m\.csv: not CSV after row 3 .*; is a quote not closed\?"):
        read_manifest(tmp_path / "m.csv")


def test_a_manifest_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "m.json", tmp_path / ("x" * 300 + ".csv")):
        with pytest.raises(UserError, match="cannot be written"):
            write_manifest(path, [Row("a", "b", "haze", "S")])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_user_error(tmp_path_factory, content):
    for suffix in (".json", ".csv"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(content)
        try:
            rows = read_manifest(path)
        except UserError as error:
            rows = [str(error)]
        assert rows
        assert isinstance(rows[0], Row) or path.name in rows[0]


def test_check_finds_each_kind_of_fault(pairs):
    Image.new("RGB", (10, 10)).save(pairs / "input" / "001.png")
    data = (pairs / "input" / "002.png").read_bytes()
    (pairs / "input" / "002.png").write_bytes(data[: len(data) // 2])
    (pairs / "input" / "003.png").write_bytes(b"")
    (pairs / "target" / "004.png").unlink()
    rows = [Row(f"input/{i:03}.png", f"target/{i:03}.png", "haze", "S") for i in range(5)]
    rows += [rows[0], Row("target/000.png", str(pairs / "target" / "000.png"), "haze", "S")]
    rows += [rows[0]._replace(image_path=str(pairs / "input" / "000.png")), Row("input", "", "haze", "S")]
    rows += [Row("x" * 300 + ".png", "", "haze", "S")]
    problems = check_rows(rows, pairs)
    found = {problem.row: problem.message for problem in problems}
    assert sorted(found) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert "10 x 10 pixels, its clean image 60 x 40" in found[2]
    assert "truncated" in found[3]
    assert found[5] == "missing"
    assert "row 1" in found[6]
    assert "one file" in found[7]
    assert "row 1" in found[8]
    assert found[9] == "a folder; expected an image file"
    assert found[10] == "missing"
    assert all(Path(problem.path).name.endswith(".png") for problem in problems if problem.row != 9)


def test_a_border_is_allowed_only_where_the_set_has_one(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "clean.png")
    Image.new("RGB", (44, 28)).save(tmp_path / "hazy.png")
    row = Row("hazy.png", "clean.png", "haze", "SOTS")
    assert len(check_rows([row], tmp_path)) == 1
    assert check_rows([row._replace(center_crop=True)], tmp_path) == []


def test_twins_are_found_by_content_and_by_look(tmp_path):
    train = write_photos(tmp_path / "train", 8, size=(120, 160))
    test = write_photos(tmp_path / "test", 4, size=(120, 160), seed=9)
    (tmp_path / "test" / "copy.png").write_bytes(train[2].read_bytes())
    with Image.open(train[5]) as photo:
        photo.resize((100, 80)).save(tmp_path / "test" / "small.jpg", quality=60)
    flat = tmp_path / "test" / "flat.png"
    Image.new("RGB", (50, 50), (9, 9, 9)).save(flat)
    Image.new("RGB", (60, 50), (99, 9, 9)).save(tmp_path / "train" / "flat too.png")
    others = [*test, tmp_path / "test" / "copy.png", tmp_path / "test" / "small.jpg", flat]
    own, _ = fingerprints([*train, tmp_path / "train" / "flat too.png"])
    twins = find_twins(own, fingerprints(others)[0])
    assert [pair for *pair, _ in twins] == [[str(train[2]), str(others[4])], [str(train[5]), str(others[5])]]
    assert twins[0][2] == "the same file"
    assert twins[1][2].startswith("the same picture")


def test_unreadable_files_have_no_fingerprint(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (good,) = write_photos(tmp_path / "p", 1)
    found, faults = fingerprints([tmp_path / "a.png", good, tmp_path / "missing.png"])
    assert [own.path for own in found] == [str(good)]
    assert list(faults) == [tmp_path / "a.png", tmp_path / "missing.png"]
    assert faults[tmp_path / "missing.png"] == "no such file"
    assert find_twins([], found) == find_twins(found, []) == []
