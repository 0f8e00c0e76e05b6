import json

import pytest
import torch
import yaml

from restorevar.models import DetailConfig, RestoreVARConfig, TokenizerConfig
from restorevar.models.detail import DetailPath
from tests.benchmarking.scripts import FOLDER, load_script

CONFIGS = FOLDER.parent / "configs" / "nano"


@pytest.fixture(scope="module")
def script():
    return load_script("regression_network")


@pytest.mark.parametrize("width", [64, 80])
def test_it_has_the_size_of_the_detail_path(script, tmp_path, width) -> None:
    init_args = yaml.safe_load((CONFIGS / "stage1.yaml").read_text())["model"]["init_args"]
    sizes = init_args["tokenizer"] | {"channel_multipliers": tuple(init_args["tokenizer"]["channel_multipliers"])}
    config = RestoreVARConfig(
        scales=tuple(init_args["scales"]), tokenizer=TokenizerConfig(**sizes), detail=DetailConfig(width=width)
    )
    (tmp_path / "config.json").write_text(json.dumps({"model": config.to_dict()}))
    with torch.device("meta"):
        path = DetailPath(config.detail, config.tokenizer)
        network = script.RegressionNetwork(script.matching_width(str(tmp_path)))
    assert script.count(network) == pytest.approx(script.count(path), rel=0.05)


def test_a_few_steps_lower_the_loss_and_go_on_from_the_file(script, tiny_photos, tmp_path) -> None:
    config = tmp_path / "stage.yaml"
    photos = {"folders": [tiny_photos.name], "degradations": {"low_light": 1.0}, "severity": [0.7, 0.8], "repeat": 8}
    source = {"class_path": "restorevar.datamodules.CleanPhotos", "init_args": photos}
    data = {"train": [source], "val": [source], "image_size": 32, "batch_size": 4}
    config.write_text(yaml.safe_dump({"model": "not read", "data": data}))
    output = tmp_path / "regression.safetensors"
    torch.manual_seed(0)
    network, progress = script.RegressionNetwork(8), script.Progress()
    data_module = script.read_data(config, str(tiny_photos.parent))
    data_module.setup("fit")
    batch = next(iter(data_module.train_dataloader()))

    def loss() -> float:
        with torch.no_grad():
            return float((network(batch["degraded"]) - batch["clean"]).abs().mean())

    before = loss()
    script.train(network, data_module, output, progress, steps=60)
    assert loss() < 0.8 * before

    again, behind = script.load(output)
    assert behind.steps == progress.steps == 60
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    losses = script.train(again, data_module, output, behind, steps=62, bfloat16=True)
    assert len(losses) == 2
    assert script.load(output)[1].steps == 62
