import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from restorevar.evaluation.scores import INPUT_METHOD, MODEL_METHOD, ScoreTable, summarize, write_json
from tests.conftest import load_module

SCRIPT = Path(__file__).parents[2] / "scripts" / "model_card.py"
KINDS = ("haze", "low_light")


@pytest.fixture(scope="module")
def script():
    return load_module(SCRIPT)


@pytest.fixture
def folder(tiny_model_folder, tmp_path) -> Path:
    shutil.copytree(tiny_model_folder, tmp_path / "tiny")
    for name in ("rain.png", "curves.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "tiny" / name)
    (tmp_path / "tiny" / "curves.csv").write_text("run,tag,step,value\n")
    (tmp_path / "tiny" / "runs.csv").write_text("run,steps,hours\ntokenizer,4200,1.25\n")
    return tmp_path / "tiny"


def write(path: Path, errors: dict[str, float], roles: dict[str, str]) -> list[dict]:
    """Scores of two photos in two kinds: each method is off by a constant."""
    table = ScoreTable(("psnr", "ssim"))
    for index, kind in enumerate(KINDS * 2):
        clean = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(index)) * 0.5
        for method, error in errors.items():
            role = roles.get(method, "model")
            table.update(clean + error, clean, [kind], ["set"], [f"{index // 2}.png"], method=method, role=role)
    facts = {"run": {"date": "today", "versions": "torch"}, "methods": list(errors)}
    write_json(path, table.scores, summarize(table.scores), facts)
    return json.loads(path.read_text())["summary"]


def test_the_card_holds_what_was_measured(script, folder, tmp_path) -> None:
    roles = {INPUT_METHOD: "input", "worse": "blind", "better": "blind"}
    errors = {INPUT_METHOD: 0.4, MODEL_METHOD: 0.1, "worse": 0.3, "better": 0.2}
    summary = write(tmp_path / "scores.json", errors, roles)
    rows = {INPUT_METHOD: 0.4, "fidelity 1": 0.1, "fidelity 1, latent of another photo": 0.102}
    write(tmp_path / "latent.json", rows, roles)
    options = ["--scores", "scores.json", "--latent", "latent.json", "--stages", "tiny/runs.csv"]
    options = [str(tmp_path / word) if "." in word else word for word in options]
    links = ["--curves", str(folder / "curves.png"), "--pictures", str(folder / "rain.png")]
    script.main([str(folder), *options, *links])
    text = (folder / "README.md").read_text()
    model = next(r for r in summary if (r["method"], r["dataset"], r["kind"]) == (MODEL_METHOD, "set", "haze"))
    interval = f"[{model['gain_low']:+.2f}, {model['gain_high']:+.2f}]"
    assert f"| set | haze | 2 | 7.96 | 20.00 | {model['gain']:+.2f} {interval} |" in text
    assert "13.98 dB (better) |" in text
    assert "For haze, low light the latent adds next to nothing" in text  # 0.17 dB
    assert "| tokenizer | 4200 | 1.25 |" in text
    assert "![rain](rain.png)" in text
    assert "![Training curves](curves.png)" in text
    assert "{{" not in text


def test_what_the_card_cannot_link_to_leaves_the_old_card(script, folder, tmp_path, capsys) -> None:
    before = (folder / "README.md").read_text()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    with pytest.raises(SystemExit) as left:
        script.main([str(folder), "--pictures", str(tmp_path / "elsewhere.png")])
    assert left.value.code == 2
    assert f"elsewhere.png is not a file in {folder}" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == before
