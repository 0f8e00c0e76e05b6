import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorevar import RestoreVAR
from restorevar.errors import UserError
from restorevar.files import sha256
from restorevar.models import RefinerConfig
from restorevar.models.pretrained import find_folder, read_config
from tests.models.small import CONVOLUTION_REFINER, DETAIL, photos, small_config, small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model(scales=(1, 2, (2, 3), (4, 6)), detail=DETAIL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, change: dict) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("refiner", [None, CONVOLUTION_REFINER, RefinerConfig(width=16, heads=2, mlp_width=8, depth=1)])
def test_saved_and_loaded_models_are_the_same(tmp_path: Path, refiner: RefinerConfig | None) -> None:
    model = small_model(refiner=refiner, detail=DETAIL)
    model.save_pretrained(tmp_path)
    loaded = RestoreVAR.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.generate(photos(model)).image, model.generate(photos(model)).image)


def test_first_parts_alone(tmp_path: Path) -> None:
    model = small_model(transformer=None, refiner=None)
    model.save_pretrained(tmp_path)
    loaded = RestoreVAR.from_pretrained(tmp_path)
    assert loaded.transformer is None
    image = photos(model)
    assert torch.equal(loaded.tokenizer.encode(image), model.tokenizer.encode(image))


def test_another_schedule_is_kept(tmp_path: Path) -> None:
    model = small_model().set_scales([1, (2, 3), (4, 5), (5, 7)])
    model.save_pretrained(tmp_path)
    loaded = RestoreVAR.from_pretrained(tmp_path)
    assert loaded.image_size == (20, 28)
    assert torch.equal(loaded.generate(photos(model)).image, model.generate(photos(model)).image)


def test_bfloat16_weights_on_disk(tmp_path: Path) -> None:
    model = small_model()
    model.set_precision(torch.bfloat16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float32}
    loaded = RestoreVAR.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
    assert torch.isfinite(loaded.generate(photos(model)).image).all()


def test_tables_are_not_stored(folder: Path) -> None:
    assert not any("rotary" in name for name in load_file(folder / "model.safetensors"))


def test_what_the_folder_holds(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    record = json.loads((folder / "config.json").read_text())
    assert record["weights_sha256"] == sha256(folder / "model.safetensors")
    card = (folder / "README.md").read_text()
    assert "24 x 16 px" in card
    assert "from_pretrained" in card
    assert read_config(folder).image_size == (16, 24)


def test_an_own_card_is_kept(folder: Path) -> None:
    small_model().save_pretrained(folder, card="# Mine\n")
    small_model().save_pretrained(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_an_interrupted_save_leaves_no_complete_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("restorevar.models.pretrained.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_model().save_pretrained(folder)
    # the old weights with a new config, or the other way round, would be worse than an error
    with pytest.raises(UserError, match=r"has no config\.json"):
        RestoreVAR.from_pretrained(folder)
    assert not [path for path in folder.iterdir() if ".part" in path.name]


class TestErrors:
    def test_unknown_key_names_the_nearest(self, folder: Path) -> None:
        model = small_config().to_dict()
        model["transformer"]["dept"] = 3
        edit_config(folder, {"model": model})
        with pytest.raises(UserError, match=r"'transformer\.dept'; did you mean 'transformer\.depth'\?"):
            RestoreVAR.from_pretrained(folder)

    def test_weights_of_another_model(self, folder: Path) -> None:
        edit_config(folder, {"model": small_config().to_dict()})
        with pytest.raises(UserError, match=r"does not fit its config\.json.*left over: \['detail"):
            RestoreVAR.from_pretrained(folder)

    def test_missing_weight(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["transformer.head.bias"]
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(UserError, match=r"missing: \['transformer\.head\.bias'\]"):
            RestoreVAR.from_pretrained(folder)

    def test_wrong_shape(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["transformer.head.bias"] = torch.zeros(7)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(
            UserError, match=r"'transformer\.head\.bias' has shape \(7,\); config\.json expects \(24,\)"
        ):
            RestoreVAR.from_pretrained(folder)

    def test_truncated_weights(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            RestoreVAR.from_pretrained(folder)

    def test_weights_gone(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            RestoreVAR.from_pretrained(folder)

    def test_broken_json(self, folder: Path) -> None:
        (folder / "config.json").write_text('{"model": ')
        with pytest.raises(UserError, match="cannot be read as JSON"):
            RestoreVAR.from_pretrained(folder)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weights": 1}'])
    def test_another_json(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match="has no key 'model'"):
            RestoreVAR.from_pretrained(folder)

    def test_newer_format(self, folder: Path) -> None:
        edit_config(folder, {"format": 99})
        with pytest.raises(UserError, match=r"format 99.*update restorevar"):
            RestoreVAR.from_pretrained(folder)

    def test_no_such_model(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no model 'nothing-like-it'; expected a model folder"):
            find_folder("nothing-like-it")
        with pytest.raises(UserError, match=r"is not a model folder: it has no config\.json"):
            find_folder(tmp_path)
        (tmp_path / "run/model").mkdir(parents=True)
        (tmp_path / "run/model/config.json").write_text("{}")
        for outer in (tmp_path, tmp_path / "run"):
            with pytest.raises(UserError, match=f"did you mean {tmp_path / 'run/model'}?"):
                find_folder(outer)
        with pytest.raises(UserError, match="no model"):
            find_folder(tmp_path / "gone")

    @pytest.mark.parametrize("name", ["models/mine", "runs/mine", "own/mine"])
    def test_a_missing_local_folder_is_never_fetched(
        self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder.parent)
        (folder.parent / "own").mkdir()
        folder.rename(folder.parent / "own" / "first")
        monkeypatch.setattr("restorevar.models.pretrained._download", lambda hub_id: pytest.fail(hub_id))
        there = "model folders in own: first" if name.startswith("own") else "there is no folder"
        with pytest.raises(UserError, match=rf"no model '{name}' \({there}.*expected a model folder"):
            find_folder(name)


def test_a_hub_id_is_fetched_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: str(folder))
    with caplog.at_level("INFO", "restorevar"):
        assert find_folder("somebody/theirs") == folder
    assert "fetching somebody/theirs from the Hugging Face hub" in caplog.messages
