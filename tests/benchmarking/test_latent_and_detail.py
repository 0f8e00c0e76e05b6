import argparse
import json

import numpy as np
import pytest
import torch

from restorevar.errors import UserError
from restorevar.models import DetailConfig, RestoreVAR, RestoreVARConfig
from tests.benchmarking.scripts import load_script
from tests.conftest import REFINER, SCALES, TOKENIZER, TRANSFORMER


@pytest.fixture(scope="module")
def script():
    return load_script("latent_and_detail")


@pytest.fixture(scope="module")
def model() -> RestoreVAR:
    """An untrained model of 32 x 32 pixels whose detail path adds something."""
    torch.manual_seed(0)
    parts = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER, "refiner": REFINER, "detail": DetailConfig(16, 1)}
    model = RestoreVAR(RestoreVARConfig(scales=SCALES, **parts)).eval()
    torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight)
    for level in model.detail.levels.values():
        torch.nn.init.normal_(level.conv_out.weight, std=0.1)
    return model


def photo(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rows_are_what_they_are_called(script, model) -> None:
    network = load_script("regression_network").RegressionNetwork(8)
    bench = script.Bench(model, network)
    degraded, another = photo(0), photo(1)
    rows = bench.restore(degraded, another)
    for fidelity in (0.0, 0.5, 1.0):
        usual = model.restore(degraded, fidelity=fidelity)  # several tiles at once round a little differently
        assert np.mean(rows[f"fidelity {fidelity:g}"] == usual) > 0.99
    assert np.array_equal(bench.restore(degraded, degraded)[script.ANOTHER], rows["fidelity 1"])
    assert np.array_equal(rows["regression network"], degraded)  # untrained it leaves photos as they are
    # another photo's latent, and yet not that photo's restoration: the detail path sees the right one
    exchanged = rows[script.ANOTHER]
    assert not np.array_equal(exchanged, rows["fidelity 1"])
    assert not np.array_equal(exchanged, model.restore(another, fidelity=1.0))
    zeroed = rows[script.ZERO]
    assert np.array_equal(zeroed, bench.restore(degraded, photo(2, 64, 32))[script.ZERO])


def test_the_files_hold_every_row_and_kind(script, model, tiny_photos, tmp_path) -> None:
    model.save_pretrained(tmp_path / "model")
    options = {
        "model": str(tmp_path / "model"),
        "photos": tiny_photos,
        "kinds": ["haze", "low_light"],
        "severities": [0.4, 0.8],
        "limit": 2,
        "regression": None,
        "device": "cpu",
        "output": tmp_path / "table",
    }
    script.measure(argparse.Namespace(**options))
    content = json.loads((tmp_path / "table.json").read_text())
    assert len(content["images"]) == (2 * 2 * 2 + 2) * 8
    places = {(row["method"], row["kind"]) for row in content["summary"]}
    assert places == {(method, kind) for method in content["methods"] for kind in ("haze", "low_light", "clean", "all")}
    low = {row["method"]: row for row in content["summary"] if (row["kind"], row["metric"]) == ("low_light", "psnr")}
    assert low["fidelity 1"]["gain"] == pytest.approx(low["fidelity 1"]["mean"] - low["degraded input"]["mean"])
    text = (tmp_path / "table.md").read_text()
    assert f"{low['fidelity 0.25']['gain']:+.2f}" in text
    assert "| | haze | low light | mean | clean |" in text


def test_a_model_without_a_detail_path_is_refused(script, tiny_model_folder, tiny_photos) -> None:
    options = argparse.Namespace(model=str(tiny_model_folder), device="cpu", photos=tiny_photos)
    with pytest.raises(UserError, match="has no detail path; expected"):
        script.measure(options)
