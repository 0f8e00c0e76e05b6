"""Every shipped configuration is parsed; a new file needs no new test."""

from pathlib import Path

import pytest
import yaml

from restorevar.cli.lightning import read_config
from restorevar.cli.pipeline import read_pipeline, stage_arguments

ROOT = Path(__file__).parent.parent / "configs"
FILES = sorted(ROOT.rglob("*.yaml"))


def kind(path: Path) -> str:
    content = yaml.safe_load(path.read_text())
    if "stages" in content:
        return "pipeline"
    has_module = "class_path" in content.get("model", {})
    return "stage" if has_module and path.parent.name not in ("trainer", "benchmarks") else "overlay"


def verb_of(path: Path) -> str:
    """The verb that a file is for: that of its data."""
    data = yaml.safe_load(path.read_text()).get("data", {})
    return next((verb for verb in ("test", "predict") if verb in data), "fit")


def test_there_are_configs():
    names = {str(path.relative_to(ROOT)) for path in FILES}
    assert {
        "stage1.yaml",
        "stage2.yaml",
        "stage3.yaml",
        "pipeline.yaml",
        "demo/pipeline.yaml",
        "trainer/cpu.yaml",
    } <= names


@pytest.mark.parametrize(
    "path", [path for path in FILES if kind(path) == "stage"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_stage_is_understood(path):
    model = yaml.safe_load(path.read_text())["model"]["class_path"]
    config = read_config([verb_of(path), "--config", str(path)])
    assert config["model"]["class_path"] == model
    assert config["trainer"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if kind(path) == "pipeline"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_pipeline_is_understood(path, tmp_path):
    stages, _ = read_pipeline(path)
    sizes = []
    for stage in stages:
        config = read_config(["fit", *stage_arguments(stage, tmp_path, [], [], stages)])
        sizes.append((config["data"]["image_size"], config["trainer"]["default_root_dir"]))
    assert len({folder for _, folder in sizes}) == len(stages)


@pytest.mark.parametrize(
    "path", [path for path in FILES if kind(path) == "overlay"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_an_overlay_goes_with_a_stage(path):
    content = yaml.safe_load(path.read_text())
    verb = verb_of(path)
    stage = ROOT / {"fit": "stage2.yaml"}.get(verb, f"{verb}.yaml")
    config = read_config([verb, "--config", str(stage), "--config", str(path)])
    for section in content:
        assert config[section] is not None


def test_the_paper_recipe():
    config = read_config(["fit", "--config", str(ROOT / "stage2.yaml")])
    model = config["model"]["init_args"]
    optimizer = model["optimizer"]["init_args"]
    batch = config["total_batch"]["total"]
    assert batch == 48
    assert optimizer["lr"] * batch / model["reference_batch"] == pytest.approx(1e-4, rel=1e-3)
    assert (optimizer["betas"], optimizer["weight_decay"]) == ([0.9, 0.95], 0.05)
    assert config["trainer"]["gradient_clip_val"] == 2.0
    assert config["trainer"]["max_epochs"] == 50
    assert config["data"]["image_size"] == 512
    assert config["data"]["resize_short_side"] == [1.125, 1.125]
    assert model["transformer"]["depth"] == 16
    assert model["transformer"]["width"] == 1024
