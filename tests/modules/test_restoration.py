import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restorevar.cli import main
from tests.training.tiny import make_data, make_models

ROOT = Path(__file__).parents[2]
COUNT = 5  # odd: two processes cannot share it evenly


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five pairs of 24 x 24 pixels, and model folders `tokenizer` and `transformer` of 16 x 16."""
    path = tmp_path_factory.mktemp("restoration")
    make_data(path, COUNT)
    make_models(path)
    return path


def config(folder: Path, name: str, **changes: Any) -> Path:
    """A test configuration as JSON, which is YAML."""
    values: dict[str, Any] = {
        "model": {
            "class_path": "restorevar.modules.RestorationModule",
            "init_args": {"model": str(folder / "transformer"), **changes.pop("model", {})},
        },
        "data": {
            "test": [
                {
                    "class_path": "restorevar.datamodules.PairedFolders",
                    "init_args": {"degraded": "degraded", "clean": "clean", "kind": "low_light", "dataset": "tiny"},
                }
            ],
            "root": str(folder),
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "default_root_dir": str(folder / name),
            "callbacks": [
                {"class_path": "restorevar.callbacks.ScoreWriter"},
                {"class_path": "restorevar.callbacks.ReportWriter"},
                {"class_path": "restorevar.callbacks.RestoredPhotoWriter"},
            ],
        },
    }
    values["data"] |= changes.pop("data", {})
    values["trainer"] |= changes.pop("trainer", {})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tested(folder) -> Path:
    """The folder of one test run."""
    assert main(["test", "--config", str(config(folder, "one"))]) == 0
    return folder / "one"


def test_every_image_is_scored_by_every_method(folder, tested):
    scores = rows(tested / "scores.csv")
    methods = {row["method"] for row in scores}
    assert methods == {
        "degraded input",
        "RestoreVAR",
        "CLAHE",
        "automatic gamma",
        "tokenizer, continuous",
        "tokenizer, discrete",
    }
    assert len(scores) == COUNT * len(methods)
    by_method = [row for row in scores if row["method"] == "degraded input"]
    for row in by_method:
        degraded = np.asarray(Image.open(folder / "degraded" / Path(row["path"]).name)) / 255
        clean = np.asarray(Image.open(folder / "clean" / Path(row["path"]).name)) / 255
        assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean((degraded - clean) ** 2)), abs=1e-3)
    assert {row["protocol"] for row in scores} == {"native"}


def test_the_models_row_is_what_restore_gives(folder, tested):
    from restorevar import RestoreVAR

    model = RestoreVAR.from_pretrained(folder / "transformer")
    for row in rows(tested / "scores.csv"):
        if row["method"] == "RestoreVAR":
            restored = model.restore(np.asarray(Image.open(row["path"])))
            clean = np.asarray(Image.open(folder / "clean" / Path(row["path"]).name))
            error = np.mean((restored / 255 - clean / 255) ** 2)
            assert float(row["psnr"]) == pytest.approx(-10 * np.log10(error), abs=1e-3)
            written = np.asarray(Image.open(tested / "restored" / "tiny" / Path(row["path"]).name))
            assert np.array_equal(written, restored)


def test_the_run_says_how_it_was_made(tested):
    content = json.loads((tested / "scores.json").read_text())
    run = content["run"]
    assert run["seed"] == "0"
    assert "torch" in run["versions"]
    assert run["weights"].startswith("sha256 ")
    assert "class_path: restorevar.modules.RestorationModule" in run["configuration"]
    assert content["protocols"]["native"]["round_to_8_bits"] is True
    assert "psnr" in content["metrics"]
    text = (tested / "report.html").read_text()
    assert run["weights"] in text
    assert "class_path: restorevar.modules.RestorationModule" in text


def test_two_processes_give_the_scores_of_one(folder, tested):
    path = config(folder, "two", trainer={"devices": 2, "strategy": "ddp"})
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("run_cli.py"))
    done = subprocess.run(
        [sys.executable, script, "test", "--config", str(path)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, numbers in (("scores.csv", ["psnr", "ssim", "psnr_y"]), ("summary.csv", ["mean", "low", "high", "gain"])):
        one, two = rows(tested / name), rows(folder / "two" / name)
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert {k: v for k, v in first.items() if k not in numbers} == {
                k: v for k, v in second.items() if k not in numbers
            }
            for number in numbers:
                if first[number]:
                    assert float(first[number]) == pytest.approx(float(second[number]), abs=1e-6)
    assert "2 process(es)" in (folder / "two" / "report.md").read_text()
    assert len(list((folder / "two" / "restored" / "tiny").iterdir())) == COUNT


def test_paper_protocol_rivals_and_a_set_outside_the_averages(folder):
    copy = f"{sys.executable} -c 'import sys, shutil; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)'"
    sources = [
        {
            "class_path": "restorevar.datamodules.PairedFolders",
            "init_args": {"degraded": "degraded", "clean": "clean", "kind": kind, "dataset": name, "limit": 1},
        }
        for kind, name in (("rain", "Rain100H"), ("motion_blur", "shaken"))
    ]
    options = {
        "protocol": "paper",
        "dataset_protocols": {"shaken": "registered_gray"},
        "metrics": ["psnr", "ssim"],
        "baselines": ["oracle"],
        "tile": 64,
        "rivals": {"copier": copy + " {input} {output}", "broken": "false {input} {output}"},
    }
    path = config(folder, "paper", model=options, data={"test": sources}, trainer={"callbacks": WRITERS})
    assert main(["test", "--config", str(path)]) == 0
    scores = rows(folder / "paper" / "scores.csv")
    places = {(row["dataset"], row["protocol"], row["height"], row["resize"]) for row in scores}
    assert places == {
        ("Rain100H", "paper", "512", "512x512 lanczos"),
        ("shaken", "registered_gray", "20", "none"),
    }
    by_method = {(row["dataset"], row["method"]): row for row in scores}
    for dataset in ("Rain100H", "shaken"):
        # the rival hands the input back
        assert by_method[dataset, "copier"]["psnr"] == by_method[dataset, "degraded input"]["psnr"]
    assert ("shaken", "Wiener, fitted kernel") in by_method
    summary = rows(folder / "paper" / "summary.csv")
    assert {row["kind"] for row in summary if row["group"] == "kind"} == {"rain"}
    content = json.loads((folder / "paper" / "scores.json").read_text())
    assert "exit code 1" in content["left_out"]["broken"]
    text = (folder / "paper" / "report.md").read_text()
    assert "| PromptIR (published) | 32.02 |" in text
    assert "Rain13K: Rain100H" in text


WRITERS = [{"class_path": "restorevar.callbacks.ScoreWriter"}, {"class_path": "restorevar.callbacks.ReportWriter"}]


def test_a_tokenizer_alone_shows_its_ceiling(folder):
    path = config(folder, "ceiling", model={"model": str(folder / "tokenizer")}, trainer={"callbacks": WRITERS})
    assert main(["test", "--config", str(path)]) == 0
    methods = {row["method"] for row in rows(folder / "ceiling" / "scores.csv")}
    assert "RestoreVAR" not in methods
    assert {"tokenizer, continuous", "tokenizer, discrete"} <= methods
    assert (
        "RestoreVAR is left out: the model folder holds a tokenizer only"
        in (folder / "ceiling" / "report.md").read_text()
    )


def test_predict_writes_photos_under_their_names(folder, capsys):
    photos = folder / "photos" / "below"
    photos.mkdir(parents=True)
    shutil.copy(folder / "degraded" / "000.png", photos / "a.png")
    Image.open(folder / "degraded" / "001.png").convert("RGB").save(photos.parent / "b.jpg", quality=95)
    source = {"class_path": "restorevar.datamodules.Photos", "init_args": {"folders": ["photos"]}}
    writer = [{"class_path": "restorevar.callbacks.RestoredPhotoWriter"}]
    path = config(folder, "predict", data={"test": None, "predict": [source]}, trainer={"callbacks": writer})
    assert main(["predict", "--config", str(path), "--return_predictions", "false"]) == 0
    written = sorted(p.relative_to(folder / "predict") for p in (folder / "predict" / "restored").rglob("*.*"))
    assert written == [Path("restored/photos/b.jpg"), Path("restored/photos/below/a.png")]
    assert Image.open(folder / "predict" / written[0]).format == "JPEG"
    assert Image.open(folder / "predict" / written[1]).size == (24, 24)


@pytest.mark.parametrize(
    ("verb", "changes", "words"),
    [
        ("test", {"model": {"model": "nowhere"}}, "no model 'nowhere'"),
        ("test", {"model": {"metrics": ["psrn"]}}, "Unknown metric: 'psrn'"),
        ("test", {"model": {"compare_fidelities": [0.5]}}, "no detail path"),
        ("test", {"trainer": {"precision": "16-true"}}, "float16 overflows"),
        ("test", {"data": {"test": None}}, "data.test: no source given"),
        ("test", {"model": {"dataset_protocols": {"foto": "paper"}}}, "no data set 'foto' is tested; there are: "),
        (
            "test",
            {"model": {"rivals": {"RestoreVAR": "cp {input} {output}"}}},
            "'RestoreVAR' is the name of another row",
        ),
    ],
)
def test_mistakes_are_one_line(folder, verb, changes, words, capsys):
    path = config(folder, "mistake", **changes)
    assert main([verb, "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not (folder / "mistake").exists()
