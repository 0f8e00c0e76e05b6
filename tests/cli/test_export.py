import dataclasses
import importlib
import json
import shutil

import pytest
import torch

from restorevar import RestoreVAR
from restorevar.cli import main
from restorevar.models import GateConfig, TransformerConfig
from restorevar.models.export import ScaleStep, scale_tables
from tests.models.small import ATTENTION_REFINER, DETAIL, randomize, small_config

TRANSFORMER = TransformerConfig(
    depth=1, width=16, heads=2, mlp_ratio=1.0, class_count=2, gain_init=1.0, local_condition=True
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    gate = GateConfig(filter_radius=3)
    model = RestoreVAR(small_config(scales=(1, 2, 8), transformer=TRANSFORMER, detail=DETAIL, gate=gate)).eval()
    randomize(model)
    path = tmp_path_factory.mktemp("models") / "small"
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("mean_scales", [0, 2])
def test_step_with_static_cache_does_what_the_model_does(mean_scales: int) -> None:
    transformer = dataclasses.replace(TRANSFORMER, mean_scales=mean_scales)
    model = RestoreVAR(small_config(transformer=transformer, refiner=ATTENTION_REFINER)).eval()
    randomize(model)
    photos = torch.rand(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.generate(photos)
    with torch.no_grad():
        features = model.tokenizer.encode_features(photos)
        state = model.transformer.start(features)
        cross = torch.stack([torch.stack(pair) for pair in state.cross])
        step, tables = ScaleStep(model, model.transformer), scale_tables(model)
        running = torch.zeros(2, features.shape[1], model.scales.lengths[-1])
        cache = torch.full((1, 2, 2, 2, model.scales.tokens, 8), 7.0)  # what lies there must not matter
        tokens = []
        for scale in range(len(model.scales)):
            inputs = [tables[f"{name}_{scale}"] for name in ("places", "phi", "down", "up")]
            arguments = (state.condition.start, cross, state.condition.local.flatten(2))
            new, _, running, cache = step(running, cache, *arguments, inputs[0], torch.tensor(scale), *inputs[1:])
            tokens.append(new)
    assert torch.equal(torch.cat(tokens, 1), expected.tokens)
    assert torch.allclose(running.view_as(expected.latent), expected.latent, atol=1e-5)


export_module = importlib.import_module("restorevar.cli.export")  # the package has a function of this name


def check(folder, output, words, tolerance=1e-5) -> dict:
    assert main(["export", "--model", str(folder), "--output", str(output), *words]) == 0
    record = json.loads((output / "package.json").read_text())
    assert record["relative_error"] < tolerance
    return record


def test_parts_restore_the_same_photo(folder, tmp_path) -> None:
    record = check(folder, tmp_path, ["--format", "parts", "--batch", "2", "--fidelity", "0.5"])
    assert record["batch"] == 2
    assert record["fidelity"] == 0.5
    assert {path.name for path in tmp_path.iterdir()} == {
        *("encoder.pt2", "step.pt2", "refiner.pt2", "decoder.pt2"),
        *("tables.safetensors", "package.json"),
    }
    assert {*record["files"], "package.json"} == {path.name for path in tmp_path.iterdir()}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # none is for its maker alone
    weights = sum(weight.nbytes for weight in RestoreVAR.from_pretrained(folder).parameters())
    for name in ("encoder", "refiner", "decoder"):  # each holds its own weights, not the model's
        kept = torch.export.load(tmp_path / f"{name}.pt2").state_dict.values()
        storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in kept}
        assert 0 < sum(storages.values()) < 0.75 * weights, name


def test_a_package_is_replaced_only_when_asked_and_only_by_a_checked_one(folder, tmp_path, monkeypatch, capsys) -> None:
    licensed, output = tmp_path / "licensed", tmp_path / "package"
    shutil.copytree(folder, licensed)
    config = json.loads((licensed / "config.json").read_text())
    config["model"]["license"] = "TERMS"
    (licensed / "config.json").write_text(json.dumps(config))
    (licensed / "TERMS").write_text("for tests")
    written = {"new": torch.zeros(1)}

    def write(network, fidelity, photo, folder):
        (folder / f"{next(iter(written))}.bin").write_text("weights")
        return network.generate(photo, fidelity=fidelity).image + next(iter(written.values()))

    monkeypatch.setattr(export_module, "_write_parts", write)
    words = ["export", "--model", str(licensed), "--output", str(output), "--format", "parts"]
    assert main(words) == 0
    (output / "mine.txt").write_text("the user's own")
    assert {path.name for path in output.iterdir()} == {"new.bin", "TERMS", "package.json", "mine.txt"}
    assert main(words) == 2
    assert "holds a package already" in capsys.readouterr().err
    written = {"wrong": torch.ones(1)}
    assert main([*words, "--overwrite"]) == 2
    assert "differs from the model's" in capsys.readouterr().err
    assert {path.name for path in output.iterdir()} == {"new.bin", "TERMS", "package.json", "mine.txt"}
    written = {"newer": torch.zeros(1)}
    assert main([*words, "--overwrite"]) == 0
    assert {path.name for path in output.iterdir()} == {"newer.bin", "TERMS", "package.json", "mine.txt"}
    assert json.loads((output / "package.json").read_text())["license"] == "TERMS"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["licensed", "package"]


def test_a_package_replaces_no_file_of_others(folder, tmp_path, monkeypatch, capsys) -> None:
    def write(network, fidelity, photo, folder):
        (folder / "model.onnx").write_text("weights")
        return network.generate(photo, fidelity=fidelity).image

    monkeypatch.setattr(export_module, "_write_onnx", write)
    output = tmp_path / "mine"
    output.mkdir()
    (output / "model.onnx").write_text("the user's own")
    words = ["export", "--model", str(folder), "--output", str(output)]
    assert main(words) == 2
    assert "model.onnx is there already" in capsys.readouterr().err
    assert (output / "model.onnx").read_text() == "the user's own"
    assert main([*words, "--overwrite"]) == 0
    assert (output / "model.onnx").read_text() == "weights"
    assert main(["export", "--model", str(folder), "--output", str(output / "package.json")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_parts_in_bfloat16(folder, tmp_path) -> None:
    record = check(folder, tmp_path, ["--format", "parts", "--precision", "bfloat16"], tolerance=5e-2)
    assert record["precision"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "aoti"])
def test_whole_programs_restore_the_same_photo(folder, tmp_path, kind) -> None:
    pytest.importorskip("onnxruntime")
    record = check(folder, tmp_path, ["--format", kind, "--size", "40"])
    assert (record["height"], record["width"]) == (40, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "batch is 0; expected a positive number"),
        (["--precision", "bfloat16"], "onnx packages are float32"),
        (["--size", "30"], "size is 30; expected a multiple of 4"),
        (["--size", "0"], "size is 0; expected a multiple of 4 from 16 on"),
        (["--fidelity", "3", "--format", "parts"], "fidelity is 3.0; expected a number from 0"),
    ],
)
def test_mistakes(folder, tmp_path, words, message, capsys) -> None:
    assert main(["export", "--model", str(folder), "--output", str(tmp_path / "package"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "package").exists()
