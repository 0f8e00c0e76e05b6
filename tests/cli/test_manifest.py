import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from restorevar.cli import main
from restorevar.datamodules.manifest import read_manifest
from tests.datamodules.conftest import write_photos


@pytest.fixture
def lol(tmp_path):
    """LOLv1's test part with 15 pairs."""
    for path in write_photos(tmp_path / "LOL" / "eval15" / "high", 15, size=(80, 100)):
        (tmp_path / "LOL" / "eval15" / "low").mkdir(exist_ok=True)
        dark = np.asarray(Image.open(path)) // 4
        Image.fromarray(dark).save(tmp_path / "LOL" / "eval15" / "low" / path.name)
    return tmp_path / "LOL"


def test_build_writes_relative_pairs_of_a_complete_set(lol, capsys):
    output = lol.parent / "lists" / "lol.json"
    assert main(["manifest", "build", str(lol), "--layout", "lol_v1_test", "--output", str(output)]) == 0
    assert "15 pairs of LOLv1" in capsys.readouterr().out
    rows = read_manifest(output)
    assert len(rows) == 15
    assert rows[0] == ("../LOL/eval15/low/000.png", "../LOL/eval15/high/000.png", "low_light", "LOLv1", False)
    assert main(["manifest", "check", str(output)]) == 0


def test_build_reports_faults_by_file_and_leaves_them_out(lol, capsys):
    (lol / "eval15" / "high" / "003.png").unlink()
    (lol / "eval15" / "low" / "004.png").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(lol / "eval15" / "low" / "005.png")
    output, report = lol / "lol.csv", lol / "report.csv"
    words = ["build", str(lol), "--layout", "lol_v1_test", "--output", str(output), "--report", str(report)]
    assert main(["manifest", *words]) == 1
    shown = capsys.readouterr().out
    for name in ("003.png: no clean image", "004.png: ", "005.png: 5 x 5 pixels"):
        assert name in shown
    assert len(read_manifest(output)) == 12
    with report.open() as file:
        assert len(list(csv.DictReader(file))) == 3
    (lol / "eval15" / "low" / "006.png").unlink()
    words = ["build", str(lol), "--layout", "lol_v1_test", "--output", str(output), "--quick", "--overwrite"]
    assert main(["manifest", *words]) == 1
    shown = capsys.readouterr().out
    assert "14 degraded images; LOLv1 (test) has 15" in shown
    assert f"{lol}/eval15/high/006.png: no degraded image of it; expected our485/low" not in shown
    assert f"{lol}/eval15/high/006.png: no degraded image of it; expected eval15/low/{{name}}" in shown


def test_build_replaces_a_manifest_only_when_told_and_by_pairs_only(lol, capsys):
    output, report = lol / "m.json", lol / "report.csv"
    words = ["manifest", "build", str(lol), "--layout", "lol_v1_test", "--output", str(output), "--report", str(report)]
    assert main(words) == 0
    before = output.read_text()
    report.unlink()
    assert main(words) == 2
    assert f"error: {output} is there already; choose another --output or --overwrite" in capsys.readouterr().err
    assert not report.exists()
    assert main([*words, "--overwrite"]) == 0
    assert output.read_text() == before
    for path in (lol / "eval15" / "low").iterdir():
        path.write_bytes(b"")
    assert main([*words, "--overwrite"]) == 1
    assert f"{output}: not written, no pair of LOLv1 is complete" in capsys.readouterr().out
    assert output.read_text() == before
    assert report.read_text().count("\n") == 16


def test_names_that_cannot_be_written_are_reported(lol, capsys):
    odd = os.fsencode(lol / "eval15" / "low") + b"/caf\xe9.png"
    shutil.copyfile(lol / "eval15" / "low" / "000.png", odd)
    output, report = lol / "m.json", lol / "report.csv"
    words = ["build", str(lol), "--layout", "lol_v1_test", "--output", str(output), "--report", str(report)]
    assert main(["manifest", *words]) == 1
    assert "caf\\udce9.png: a name that is not UTF-8" in capsys.readouterr().out
    assert len(read_manifest(output)) == 15


def test_own_folders_need_no_layout(lol):
    output = lol / "own.json"
    patterns = ["--degraded", "low/{name}", "--clean", "high/{name}", "--kind", "low_light", "--dataset", "mine"]
    assert main(["manifest", "build", str(lol), *patterns, "--output", str(output)]) == 0
    assert {(row.kind, row.dataset) for row in read_manifest(output)} == {("low_light", "mine")}


def entry(name: str) -> dict[str, str]:
    paths = {"image_path": f"eval15/low/{name}.png", "target_path": f"eval15/high/{name}.png"}
    return paths | {"degradation": "Low-light", "dataset": "LOLv1"}


def test_root_is_where_relative_paths_start(lol, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    manifest, other = tmp_path / "lists" / "m.json", tmp_path / "lists" / "other.json"
    manifest.write_text(json.dumps([entry("000"), entry("001")]))
    other.write_text(json.dumps([entry("002")]))
    assert main(["manifest", "check", str(manifest)]) == 1
    assert main(["manifest", "check", str(manifest), "--root", str(lol), "--against", str(other)]) == 0
    words = ["manifest", "pack", str(manifest), "--output", str(tmp_path / "shards")]
    assert main(words) == 2
    assert main([*words, "--root", str(lol)]) == 0
    capsys.readouterr()
    for command in (words, ["manifest", "check", str(manifest)]):
        assert main([*command, "--root", str(tmp_path / "none")]) == 2
        assert f"--root {tmp_path}/none: no such folder" in capsys.readouterr().err


def test_check_compares_counts_with_a_layout_when_asked(lol, capsys):
    manifest = lol / "m.json"
    rows = [entry(f"{n:03}") for n in range(15)]
    manifest.write_text(json.dumps([*rows, rows[0] | {"image_path": "eval15/high/003.png", "dataset": "another"}]))
    assert main(["manifest", "check", str(manifest), "--layout", "lol_v1_test"]) == 0
    manifest.write_text(json.dumps(rows[:14]))
    assert main(["manifest", "check", str(manifest)]) == 0
    assert main(["manifest", "check", str(manifest), "--layout", "lol_v1_test"]) == 1
    assert f"{manifest}: 14 degraded images; LOLv1 (test) has 15" in capsys.readouterr().out
    assert main(["manifest", "check", str(manifest), "--layout", "lhp_rain"]) == 2
    assert "there is no count to compare with" in capsys.readouterr().err


def test_a_test_set_that_cannot_be_read_is_no_proof_that_there_are_no_twins(lol, capsys):
    manifest, test, report = lol / "m.json", lol / "test.json", lol / "report.csv"
    manifest.write_text(json.dumps([entry("000")]))
    test.write_text(json.dumps([entry("001"), entry("998"), entry("999")]))
    words = ["manifest", "check", str(manifest), "--against", str(test), "--report", str(report)]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert f"{manifest}: 1 rows, 0 problems" in shown
    assert f"{test}, row 2: {lol}/eval15/high/998.png: no such file" in shown
    with report.open() as file:
        assert [(line["manifest"], line["row"]) for line in csv.DictReader(file)] == [
            (str(test), "2"),
            (str(test), "3"),
        ]
    (lol / "others").mkdir()
    (lol / "others" / "bad.png").write_bytes(b"")
    assert main(["manifest", "check", str(manifest), "--against", str(lol / "others")]) == 1
    assert f"{lol}/others: {lol}/others/bad.png: an empty file" in capsys.readouterr().out


def test_check_reads_all_manifests_before_it_works(lol, capsys):
    manifest, other, report = lol / "a.json", lol / "b.json", lol / "r.csv"
    manifest.write_text(json.dumps([entry("999")]))
    for content in ("[", "[" * 200_000):
        other.write_text(content)
        assert main(["manifest", "check", str(manifest), str(other), "--report", str(report)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert f"error: {other}: not JSON" in output.err
        assert not report.exists()


def test_targets_are_checked_before_any_work(lol, capsys):
    (lol / "file").touch()
    manifest = lol / "m.json"
    build = ["manifest", "build", str(lol), "--layout", "lol_v1_test"]
    for target in (lol / "file" / "m.json", lol / "file" / "sub" / "m.json"):
        assert main([*build, "--output", str(target)]) == 2
        assert f"error: {target} cannot be written" in capsys.readouterr().err
    for report in (lol / "file" / "r.csv", lol):
        assert main([*build, "--output", str(manifest), "--report", str(report)]) == 2
        assert f"error: {report} cannot be written" in capsys.readouterr().err
        assert not manifest.exists()
    assert main([*build, "--output", str(manifest), "--report", str(manifest)]) == 2
    assert main([*build, "--output", str(manifest), "--report", str(lol / "new" / "r.csv")]) == 0
    assert (lol / "new" / "r.csv").exists()
    before = manifest.read_text()
    assert main(["manifest", "check", str(manifest), "--report", str(manifest)]) == 2
    assert "is one of the files given" in capsys.readouterr().err
    assert manifest.read_text() == before


def test_check_names_row_and_file_and_twins(lol, capsys, tmp_path):
    entries = [
        {"image_path": f"eval15/low/{n:03}.png", "target_path": f"eval15/high/{n:03}.png", "degradation": "Low-light",
         "dataset": "LOLv1"} for n in (0, 1, 2)
    ]  # fmt: skip
    entries[1]["image_path"] = "eval15/low/999.png"
    manifest = lol / "m.json"
    manifest.write_text(json.dumps(entries))
    (tmp_path / "train").mkdir()
    with Image.open(lol / "eval15" / "high" / "002.png") as photo:
        photo.resize((70, 60)).save(tmp_path / "train" / "renamed.jpg", quality=80)
    assert main(["manifest", "check", str(manifest), "--against", str(tmp_path / "train")]) == 1
    shown = capsys.readouterr().out
    assert "row 2: " in shown
    assert "999.png: missing" in shown
    assert "row 3: " in shown
    assert "renamed.jpg" in shown
    assert "3 rows, 2 problems" in shown


def test_pack_and_index(lol, capsys):
    assert main(["manifest", "pack", str(lol / "eval15" / "high"), "--output", str(lol / "shards")]) == 0
    before = (lol / "shards" / "index.json").read_text()
    (lol / "shards" / "index.json").unlink()
    assert main(["manifest", "index", str(lol / "shards")]) == 0
    assert (lol / "shards" / "index.json").read_text() == before
    assert "15 samples in 1 shards" in capsys.readouterr().out


@pytest.mark.parametrize("with_pairs", [False, True])
def test_pack_takes_no_degraded_photo_for_a_clean_one(lol, capsys, with_pairs):
    names = ["eval15/low/000.png", "eval15/low/001.png"]
    rows = [{"image_path": name, "target_path": "", "degradation": "snow", "dataset": "S"} for name in names]
    if with_pairs:
        rows.insert(0, rows[0] | {"target_path": "eval15/high/000.png"})
    (lol / "real.json").write_text(json.dumps(rows))
    assert main(["manifest", "pack", str(lol / "real.json"), "--output", str(lol / "shards")]) == 2
    number = 2 if with_pairs else 1
    message = f"error: {lol}/real.json, row {number}: {lol}/eval15/low/000.png is a degraded photo (snow) without"
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (lol / "shards").exists()
    for row in rows:
        row |= {"degradation": "clean", "target_path": ""}
    (lol / "real.json").write_text(json.dumps(rows))
    assert main(["manifest", "pack", str(lol / "real.json"), "--output", str(lol / "shards")]) == 0


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_pack_names_the_row_of_a_bad_file_and_leaves_nothing(lol, capsys, fault):
    manifest, bad = lol / "lol.json", lol / "eval15" / "low" / "012.png"
    assert main(["manifest", "build", str(lol), "--layout", "lol_v1_test", "--output", str(manifest), "--quick"]) == 0
    if fault == "missing":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:200])
    assert main(["manifest", "pack", str(manifest), "--output", str(lol / "shards")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {manifest}, row 13: {bad}")
    assert not (lol / "shards").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "LOL", "--output", "m.json"], "--layout NAME, or --degraded"),
        (["build", "LOL", "--layout", "lol_v1", "--output", "m.json"], "did you mean 'lol_v1_t"),
        (["build", "LOL", "--layout", "gopro_train", "--output", "m.json"], "no pair found in 30 photos"),
        (["build", "LOL", "--layout", "lol_v1_test", "--output", "m.txt"], "ends in .json or .csv"),
        (["build", "nowhere", "--layout", "lol_v1_test", "--output", "m.json"], "nowhere: no such folder"),
        (
            ["build", "LOL", "--degraded", "low/{name", "--clean", "high/{name}", "--output", "m.json"],
            "'low/{name'; exp",
        ),
        (["build", "LOL", "--degraded", "low/{1}", "--clean", "high/{1}", "--output", "m.json"], "'low/{1}'; exp"),
        (["build", "LOL", "--degraded", "low/{a}.png", "--clean", "high/{a}", "--output", "m.json"], "ending .png"),
        (["build", "LOL", "--degraded", "low/{a}", "--clean", "high/{b}", "--output", "m.json"], "found {b} in 'high"),
        (
            ["build", "LOL", "--degraded", "a", "--clean", "b", "--kind", "os.path", "--output", "m.json"],
            "'os.path'; e",
        ),
        (["pack", "LOL", "--output", "LOL/eval15/low/000.png"], "a file; expected a folder"),
        (["check", "none.json"], "none.json: no such file"),
        (["pack", "none.json", "--output", "shards"], "none.json: no such file"),
        (["pack", "LOL", "--output", "shards", "--shard-megabytes", "0"], "a shard of 0 megabytes"),
        (["index", "LOL"], "no .tar file"),
    ],
)
def test_mistakes_end_with_code_2_and_write_nothing(lol, monkeypatch, capsys, words, message):
    monkeypatch.chdir(lol.parent)
    assert main(["manifest", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in lol.parent.iterdir()) == ["LOL"]


def test_layouts_are_listed(capsys):
    assert main(["manifest", "layouts"]) == 0
    shown = capsys.readouterr().out
    assert "gopro_train" in shown
    assert "13,712" in shown
