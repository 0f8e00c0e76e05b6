import csv
import dataclasses
import json
import math

import pytest
import torch

from restorevar.errors import UserError
from restorevar.evaluation.protocol import PROTOCOLS
from restorevar.evaluation.scores import ScoreTable, gather_scores, summarize, write_json, write_scores, write_summary
from tests.evaluation.photos import pairs, tensor


def filled(**options) -> ScoreTable:
    """Four photos as two kinds of one set, with input and model rows; the model takes a third of the error away."""
    table = ScoreTable(("psnr", "ssim", "ssim_y"), **options)
    for index, (degraded, clean) in enumerate(pairs(48, 52)):
        given, target = tensor(degraded), tensor(clean)
        labels = {"kind": [("haze", "rain")[index % 2]], "dataset": ["set"], "path": [f"{index}.png"]}
        table.update(given, target, method="degraded input", role="input", **labels)
        table.update(given + (target - given) / 3, target, severity=[0.5], parameters=["{}"], **labels)
    for index, score in enumerate(table.scores):  # the input and the model saw the same sample
        table.scores[index] = dataclasses.replace(score, severity=0.5)
    return table


def test_means_are_those_of_the_images():
    table = filled()
    scores = [score for score in table.gather() if score.role == "model"]
    values = [score.values["psnr"] for score in scores]
    assert len(values) == 4
    means = {s.kind: s for s in summarize(scores) if s.metric == "psnr" and s.group in ("all", "kind")}
    assert means["all"].estimate.mean == pytest.approx(sum(values) / 4)
    haze = [score.values["psnr"] for score in scores if score.kind == "haze"]
    assert means["haze"].estimate.mean == pytest.approx(sum(haze) / 2)
    (ssim,) = (s.estimate for s in summarize(scores) if (s.metric, s.group, s.kind) == ("ssim", "kind", "haze"))
    assert ssim.mean == pytest.approx(sum(score.values["ssim"] for score in scores if score.kind == "haze") / 2)
    places = {(s.dataset, s.kind) for s in summarize(scores) if s.group == "dataset_kind"}
    assert places == {("set", "haze"), ("set", "rain")}


def test_gains_are_paired_with_the_input():
    summaries = [s for s in summarize(filled().gather()) if s.metric == "psnr" and s.group == "all"]
    by_role = {summary.role: summary for summary in summaries}
    assert by_role["input"].gain is None
    gain = by_role["model"].gain
    assert gain.mean == pytest.approx(by_role["model"].estimate.mean - by_role["input"].estimate.mean)
    # a third of the error less is 3.52 dB, up to rounding to 8 bits and clipping
    assert gain.mean == pytest.approx(20 * math.log10(1.5), abs=0.2)
    assert gain.high - gain.low < 1  # far narrower than the scores themselves
    assert by_role["model"].estimate.high - by_role["model"].estimate.low > 3


def test_degraded_versions_of_one_photo_are_drawn_together():
    """As in SOTS: files of their own, but few scenes."""
    alone, together = ScoreTable(("psnr",)), ScoreTable(("psnr",))
    for index, (degraded, clean) in enumerate(pairs(48, 52)):
        for copy in range(10):
            labels = {"kind": ["haze"], "dataset": ["set"], "path": [f"{index}_{copy}.png"]}
            given, target = tensor(degraded), tensor(clean)
            alone.update(given, target, **labels)
            together.update(given, target, scene=[str(index)], **labels)
    narrow, wide = (summarize(table.gather())[0].estimate for table in (alone, together))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_sample_seen_twice_counts_once():
    scores = filled().gather()
    assert gather_scores([*scores, *scores]) == scores


def test_sets_outside_the_averages_appear_by_themselves():
    table = filled(dataset_protocols={"set": PROTOCOLS["registered_gray"]})
    summaries = summarize(table.gather())
    assert {summary.group for summary in summaries} == {"dataset", "dataset_kind"}
    assert {summary.metric for summary in summaries} == {"psnr", "ssim"}  # no luma of grey
    assert {summary.dataset for summary in summaries} == {"set"}


def test_protocols_are_never_averaged_together():
    table = filled()
    other = dataclasses.replace(PROTOCOLS["native"], name="other", crop_border=4)
    scores = table.gather()
    mixed = scores + [dataclasses.replace(score, protocol=other, dataset="more") for score in scores]
    alls = [s for s in summarize(mixed) if s.group == "all" and s.metric == "psnr" and s.role == "model"]
    assert {(s.protocol.name, s.estimate.images) for s in alls} == {("native", 4), ("other", 4)}


def test_an_empty_set_is_an_error():
    with pytest.raises(UserError, match="the set is empty"):
        summarize([])


def test_files_hold_every_score_with_its_protocol(tmp_path):
    scores = filled().gather()
    summaries = summarize(scores)
    write_scores(tmp_path / "scores.csv", scores)
    write_summary(tmp_path / "summary.csv", summaries)
    write_json(tmp_path / "scores.json", scores, summaries, {"run": {"seed": 0}})
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row, score in zip(rows, scores, strict=True):
        assert float(row["psnr"]) == score.values["psnr"]
        assert (row["protocol"], row["color"], row["resize"], row["round_to_8_bits"]) == (
            "native",
            "rgb",
            "none",
            "True",
        )
    with (tmp_path / "summary.csv").open(newline="") as file:
        means = {(r["group"], r["kind"], r["method"], r["metric"]): float(r["mean"]) for r in csv.DictReader(file)}
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["run"] == {"seed": 0}
    for entry in content["summary"]:
        assert means[entry["group"], entry["kind"], entry["method"], entry["metric"]] == entry["mean"]
        assert entry["data_range"] == 1.0
    assert len(content["images"]) == 8


def test_undefined_values_are_empty_and_not_nan(tmp_path):
    table = ScoreTable(("psnr", "ssim"))
    table.update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), ["rain"], ["s"], ["a"], severity=[math.nan])
    score = table.scores[0]
    assert score.values["ssim"] is None
    assert score.severity is None
    write_json(tmp_path / "scores.json", [score], summarize([score]), {})
    assert json.loads((tmp_path / "scores.json").read_text())["images"][0]["ssim"] is None


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, [], [], {"run": object()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
