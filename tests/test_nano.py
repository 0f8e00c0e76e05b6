"""restorevar-nano: the recipe that makes it, the folder that is shipped, and what its card claims."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from restorevar import RestoreVAR
from restorevar.cli import main
from restorevar.cli.restore import DEFAULT_MODEL
from restorevar.datamodules.batch import to_tensor
from restorevar.datamodules.degradations import degrade
from restorevar.devices import computes_bfloat16
from restorevar.files import sha256
from restorevar.models.pretrained import shipped_models
from restorevar.restoration.photo import read_rgb
from tests.conftest import load_module, skimage_photo

ROOT = Path(__file__).parents[1]
SHIPPED = pytest.mark.skipif(DEFAULT_MODEL not in shipped_models(), reason=f"{DEFAULT_MODEL} is not in this checkout")


@SHIPPED
def test_the_shipped_folder_is_whole_and_names_its_licence():
    folder = shipped_models()[DEFAULT_MODEL]
    record = json.loads((folder / "config.json").read_text())
    assert record["weights_sha256"] == sha256(folder / "model.safetensors")
    assert record.get("gate_sha256") == (sha256(folder / "gate.safetensors") if record["model"].get("gate") else None)
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 30e6
    assert record["model"]["license"] == "LICENSE-WEIGHTS"
    assert (folder / "LICENSE-WEIGHTS").read_text() == (ROOT / "LICENSE-WEIGHTS").read_text()
    assert (folder / "README.md").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recipe_runs_and_its_model_can_be_shipped(tmp_path):
    names = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png", "motorcycle_left.png", "hubble_deep_field.jpg")
    folders = ("bsds432", "imagenet1k_samples", "cid22_train", "clic2025", "sun_hays80", "gb82")
    for folder, name in zip(folders, names, strict=True):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        with Image.open(skimage_photo(name)) as photo:
            photo.convert("RGB").resize((256, 192)).save(tmp_path / "photos" / folder / f"{Path(name).stem}.png")
    short = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.limit_val_batches=1"]
    short += ["--data.batch_size=4", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
    config = ROOT / "configs" / "nano" / "pipeline.yaml"
    if not computes_bfloat16(torch.device("cpu")):  # as the run itself advises
        short += ["--trainer.precision=32-true"]
        stages = [stage["name"] for stage in yaml.safe_load(config.read_text())["stages"][1:]]
        short += [f"--{stage}.model.encoder_bfloat16=false" for stage in stages]
    words = ["pipeline", "--config", str(config), "--output", str(tmp_path / "runs"), *short]
    assert main([*words, "--data.root", str(tmp_path / "photos")]) == 0

    script = load_module(ROOT / "scripts" / "ship.py")
    script.ship(tmp_path / "runs" / "gate" / "model", tmp_path / "shipped")  # refuses more than 30 MB
    model = RestoreVAR.from_pretrained(tmp_path / "shipped")
    assert None not in (model.transformer, model.refiner, model.detail, model.gate)
    words = ["restore", str(skimage_photo("chelsea.png")), "--output", str(tmp_path / "out")]
    assert main([*words, "--model", str(tmp_path / "shipped")]) == 0


@pytest.fixture(scope="module")
def nano() -> RestoreVAR:
    return RestoreVAR.from_pretrained(DEFAULT_MODEL)


def crops(model: RestoreVAR, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean crops (6, 3, H, W) in [-1, 1] from the middle of three photos, at two severities each."""
    height, width = model.image_size
    degraded, clean = [], []
    for number, name in enumerate(("astronaut.png", "chelsea.png", "coffee.png")):
        photo = read_rgb(skimage_photo(name))
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        for severity in (0.5, 0.7):
            pixels, _ = degrade(photo, kind, severity, 100 + number, crop=(top, left, height, width))
            degraded.append(to_tensor(pixels))
            clean.append(to_tensor(photo[top : top + height, left : left + width]))
    return torch.stack(degraded), torch.stack(clean)


@torch.no_grad()
def restored(
    model: RestoreVAR, degraded: torch.Tensor, fidelity: float, of_another_photo: bool = False
) -> torch.Tensor:
    """What the model makes of the crops, or of their details with the latent of the next photo's roll-out."""
    features, pyramid = model.tokenizer.encoder.features(model.prepared(degraded))
    latent = model.refine(model.roll_out(features), features)
    if of_another_photo:
        latent = latent.roll(2, 0)  # two severities a photo
    return model.decode(latent, pyramid, fidelity).float()


def psnr(images: torch.Tensor, clean: torch.Tensor) -> float:
    """Mean over the images, in dB."""
    errors = (images - clean).square().mean(dim=(1, 2, 3)).numpy() / 4  # range 2
    return float(np.mean(-10 * np.log10(errors)))


@SHIPPED
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("haze", 4.0), ("low_light", 6.0)])
def test_the_latent_does_the_work(kind, least, nano):
    degraded, clean = crops(nano, kind)
    assert psnr(restored(nano, degraded, 0.0), clean) >= psnr(degraded, clean) + least
    full = psnr(restored(nano, degraded, 1.0), clean)
    assert psnr(restored(nano, degraded, 1.0, of_another_photo=True), clean) <= full - 2


@SHIPPED
@pytest.mark.slow
def test_a_clean_photo_passes(nano):
    _, clean = crops(nano, "haze")
    assert psnr(restored(nano, clean, 1.0), clean) >= 30


@SHIPPED
@pytest.mark.slow
def test_the_demo_restores(tmp_path):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    gains = {kind: [] for kind in ("haze", "rain", "snow", "low_light", "motion_blur")}
    for entry in scores:
        gains[entry["kind"]].append(entry["restored_psnr"] - entry["degraded_psnr"])
    assert np.mean(list(gains.values())) >= 4.5
    assert min(np.mean(values) for values in gains.values()) >= 0
