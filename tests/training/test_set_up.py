"""Wrong set-ups stop before the first step with one line; the shipped configurations are the recipe."""

from pathlib import Path

import pytest
import tiny
import torch

from restorevar.cli import main
from restorevar.cli.lightning import read_config
from restorevar.optimization import RecipeSchedule

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set_up")
    tiny.make_data(folder)
    tiny.make_models(folder)
    (folder / "stage.yaml").write_text(
        f"""
model:
  class_path: restorevar.modules.TransformerModule
  init_args:
    initial_model: {folder / "tokenizer"}
    transformer: {{depth: 2, width: 16, heads: 2}}
data:
  train:
    - class_path: restorevar.datamodules.PairedFolders
      init_args: {{degraded: {folder / "degraded"}, clean: {folder / "clean"}, kind: rain}}
  image_size: {tiny.SIDE}
  batch_size: 4
trainer: {{accelerator: cpu, devices: 1, max_steps: 1, default_root_dir: {folder / "run"}, enable_progress_bar: false}}
"""
    )
    return folder


WRONG = {
    "total batch": (["--total_batch.total", "6"], "a batch of 6 was asked for"),
    "no stage before": (["--model.initial_model", "runs/none/model"], "no model 'runs/none/model'"),
    "other sizes": (
        ["--model.initial_model", "FOLDER/transformer", "--model.transformer.width", "32"],
        "of another size",
    ),
    "no data": (
        ["--data.train", "[{class_path: PairedFolders, init_args: {degraded: missing, clean: missing}}]"],
        "no such folder",
    ),
    "crop": (["--data.image_size", "32"], "data.image_size is 32 x 32"),
    "cache": (["--model.latent_cache", "cache"], "turn off data.random_crop, data.horizontal_flip, or leave"),
    "no end": (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], "the schedule needs an end"),
}
if not torch.cuda.is_available():
    WRONG["devices"] = (["--trainer.accelerator", "gpu", "--trainer.devices", "4"], "This machine has 0 GPUs")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_set_ups_are_one_line(folder, capsys, monkeypatch, name):
    monkeypatch.chdir(folder)
    words, message = WRONG[name]
    code = main(["fit", "--config", "stage.yaml", *(word.replace("FOLDER", str(folder)) for word in words)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folder / "run" / "model").exists()


def test_the_right_set_up_runs_and_resumes_at_its_end(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["fit", "--config", "stage.yaml", "--trainer.default_root_dir", "right", "--ckpt_path", "last"]) == 0
    first = (folder / "right" / "model" / "model.safetensors").read_bytes()
    assert main(["fit", "--config", "stage.yaml", "--trainer.default_root_dir", "right", "--ckpt_path", "last"]) == 0
    assert (folder / "right" / "model" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("stage", [2, 3])
def test_the_recipe_to_the_letter(stage):
    settings = read_config(["fit", "--config", str(CONFIGS / f"stage{stage}.yaml")])
    model, trainer, data = settings["model"]["init_args"], settings["trainer"], settings["data"]
    optimizer = model["optimizer"]
    assert optimizer["class_path"] == "torch.optim.AdamW"
    assert optimizer["init_args"]["lr"] == pytest.approx(0.000533)
    assert tuple(optimizer["init_args"]["betas"]) == (0.9, 0.95)
    assert optimizer["init_args"]["weight_decay"] == 0.05
    assert model["reference_batch"] == 256
    assert settings["total_batch"]["total"] == 48
    schedule = model["schedule"]
    assert schedule["class_path"].endswith("RecipeSchedule")
    assert RecipeSchedule(**schedule.get("init_args", {})) == RecipeSchedule(1.0, 1.0, 0.05, 0.01)
    assert trainer["gradient_clip_val"] == 2.0
    assert trainer["max_epochs"] == 50
    assert data["image_size"] == 512
    assert tuple(data["resize_short_side"]) == (1.125, 1.125)
    assert 48 % data["batch_size"] == 0
    assert not any("ExponentialMovingAverage" in callback["class_path"] for callback in trainer["callbacks"])


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("overlay", ["cpu", "gpu", "ddp", "fsdp", "slurm"])
def test_overlays_keep_the_recipe(stage, overlay):
    """Where a stage runs changes nothing about what it computes."""
    alone = read_config(["fit", "--config", str(CONFIGS / f"stage{stage}.yaml")])
    files = [CONFIGS / f"stage{stage}.yaml", CONFIGS / "trainer" / f"{overlay}.yaml"]
    both = read_config(["fit", *(word for file in files for word in ("--config", str(file)))])
    assert both["model"] == alone["model"]
    assert both["total_batch"] == alone["total_batch"]
    for name in ("max_epochs", "max_steps", "gradient_clip_val", "default_root_dir"):
        assert both["trainer"][name] == alone["trainer"][name]
    kept = [callback["class_path"] for callback in alone["trainer"]["callbacks"]]
    assert [callback["class_path"] for callback in both["trainer"]["callbacks"]][: len(kept)] == kept
