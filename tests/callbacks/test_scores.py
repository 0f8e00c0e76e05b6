"""What the writers do by themselves; the files they leave are tested through the command line in tests/modules."""

import dataclasses
import json
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest

from restorevar.callbacks import ReportWriter, ScoreWriter
from restorevar.evaluation.report import Results
from restorevar.evaluation.scores import ScoreTable, summarize
from restorevar.modules import RestorationModule
from restorevar.modules.restoration import RestoredPhoto
from tests.evaluation.photos import pairs, tensor


def finished(metrics=("psnr",)) -> tuple[RestorationModule, list[RestoredPhoto]]:
    """A module after a test of four photos."""
    module, table, photos = RestorationModule("model"), ScoreTable(metrics), []
    for index, (degraded, clean) in enumerate(pairs(32, 40)):
        labels = {"kind": ["rain"], "dataset": ["set"], "path": [f"{index}.png"]}
        before = table.update(tensor(degraded), tensor(clean), method="degraded input", role="input", **labels)[0]
        score = table.update(tensor(clean), tensor(clean), **labels)[0]
        photos.append(RestoredPhoto(f"{index}.png", "set", "rain", None, degraded, clean, clean, score, before))
    scores = table.gather()
    module.results = Results(scores, summarize(scores), {}, {}, {"seed": "0"})
    return module, photos


def trainer(folder, zero=True):
    return SimpleNamespace(default_root_dir=str(folder), is_global_zero=zero, callbacks=[])


def test_files_land_in_the_runs_folder_or_where_asked(tmp_path):
    module, photos = finished()
    report = ReportWriter()
    report.on_test_start(trainer(tmp_path), module)
    report.on_test_batch_end(trainer(tmp_path), module, {"photos": photos}, None, 0)
    report.on_test_end(trainer(tmp_path), module)
    ScoreWriter(str(tmp_path / "elsewhere")).on_test_end(trainer(tmp_path), module)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "elsewhere"}
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"scores.csv", "summary.csv", "scores.json"}
    assert (tmp_path / "report.html").read_text().count('class="slider"') == 3  # worst, median and best; no failure
    assert json.loads((tmp_path / "elsewhere" / "scores.json").read_text())["run"] == {"seed": "0"}


def test_only_one_process_writes(tmp_path):
    module, _ = finished()
    for writer in (ScoreWriter(), ReportWriter()):
        writer.on_test_end(trainer(tmp_path, zero=False), module)
    assert not list(tmp_path.iterdir())


def test_other_modules_and_unfinished_tests_leave_nothing(tmp_path):
    for module in (L.LightningModule(), RestorationModule("model")):
        for writer in (ScoreWriter(), ReportWriter()):
            writer.on_test_end(trainer(tmp_path), module)
    assert not list(tmp_path.iterdir())


def test_a_second_test_forgets_the_first(tmp_path):
    module, photos = finished()
    report = ReportWriter()
    for name in ("first", "second"):
        report.on_test_start(trainer(tmp_path), module)
        used = photos if name == "first" else photos[:1]
        report.on_test_batch_end(trainer(tmp_path), module, {"photos": used}, None, 0)
        report.on_test_end(trainer(tmp_path / name), module)
    assert (tmp_path / "first" / "report.html").read_text().count('class="slider"') == 3
    assert (tmp_path / "second" / "report.html").read_text().count('class="slider"') == 1


def test_photos_without_a_score_have_no_picture(tmp_path):
    module, photos = finished()
    unscored = [dataclasses.replace(photo, score=None, restored=None) for photo in photos]
    report = ReportWriter()
    report.on_test_start(trainer(tmp_path), module)
    report.on_test_batch_end(trainer(tmp_path), module, {"photos": unscored}, None, 0)
    report.on_test_end(trainer(tmp_path), module)
    assert 'class="slider"' not in (tmp_path / "report.html").read_text()


def test_perfect_restoration_is_100_db_and_json_has_no_infinity(tmp_path):
    module, _ = finished()
    ScoreWriter().on_test_end(trainer(tmp_path), module)
    content = json.loads((tmp_path / "scores.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {row["psnr"] for row in content["images"] if row["method"] == "RestoreVAR"} == {100.0}
    assert all(np.isfinite(row["mean"]) for row in content["summary"])
