import pytest
import torch

from restorevar.datamodules import PairedFolders, RestorationDataModule
from restorevar.errors import UserError
from restorevar.models import RestoreVAR
from restorevar.modules import RefinerModule, TransformerModule
from restorevar.modules.latent_cache import LatentCache, encoder_digest
from restorevar.optimization import ConstantSchedule
from tests.modules.stages import fit, make_batch, save_photo

FIXED = {"random_crop": False, "horizontal_flip": False}


def keyed_batch(size: int = 4, seed: int = 0):
    return {**make_batch(size, seed=seed), "clean_key": [f"{seed}{index:063}" for index in range(size)]}


def make_module(tiny_folders, folder, **settings) -> RefinerModule:
    module = RefinerModule(str(tiny_folders["refiner"]), latent_cache=str(folder), **settings)
    module.configure_model()
    return module


@pytest.fixture
def encoded(monkeypatch):
    """Photos in each pass of an encoder."""
    counts = []
    encode = RefinerModule.encode

    def counting(module, images):
        counts.append(len(images))
        return encode(module, images)

    monkeypatch.setattr(RefinerModule, "encode", counting)
    return counts


@pytest.fixture
def data(tmp_path):
    for name, seed in (("clean", 0), ("degraded", 100)):
        (tmp_path / name).mkdir()
        for index in range(6):
            save_photo(tmp_path / name / f"{index}.png", 40, seed + index)

    def make(**settings) -> RestorationDataModule:
        source = PairedFolders(degraded=str(tmp_path / "degraded"), clean=str(tmp_path / "clean"), kind="rain")
        return RestorationDataModule(train=[source], image_size=32, batch_size=3, **{**FIXED, **settings})

    return make


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_same_bits_with_and_without(tiny_folders, tmp_path, encoded, bfloat16):
    for size in (1, 4):
        batch = keyed_batch(size)
        plain = make_module(tiny_folders, tmp_path, encoder_bfloat16=bfloat16)
        plain.latent_cache = None
        module = make_module(tiny_folders, tmp_path / str(size), encoder_bfloat16=bfloat16)
        encoded.clear()
        expected, first, second = plain.encode_pair(batch), module.encode_pair(batch), module.encode_pair(batch)
        for found in (first, second):
            assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
            assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in expected]
        assert encoded == ([8, 8, 4] if size == 4 else [2, 2, 2])  # never a photo alone


def test_missing_ones_alone_are_made(tiny_folders, tmp_path, encoded):
    module, batch = make_module(tiny_folders, tmp_path), keyed_batch()
    expected = module.encode_pair(batch)[1]
    cache = LatentCache(str(tmp_path), module.model, False)
    cache.path(batch["clean_key"][2]).unlink()
    assert torch.equal(module.encode_pair(batch)[1], expected)
    assert encoded == [8, 5]
    assert torch.equal(cache.read(batch["clean_key"][2]), expected[2])


def test_broken_and_foreign_files_are_replaced(tiny_folders, tmp_path, encoded):
    module, batch = make_module(tiny_folders, tmp_path), keyed_batch()
    expected = module.encode_pair(batch)[1]
    cache = LatentCache(str(tmp_path), module.model, False)
    paths = [cache.path(key) for key in batch["clean_key"]]
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(whole[0][:-7])  # cut off
    paths[1].write_bytes(whole[1][:-1] + bytes([whole[1][-1] ^ 1]))  # a flipped bit
    paths[2].write_bytes(whole[3])  # another photo's
    paths[3].write_text("something else")
    assert all(cache.read(key) is None for key in batch["clean_key"])
    assert torch.equal(module.encode_pair(batch)[1], expected)
    assert all(torch.equal(cache.read(key), latent) for key, latent in zip(batch["clean_key"], expected, strict=True))
    assert encoded == [8, 8]
    assert not list(tmp_path.rglob("*.part*"))


def test_it_hangs_on_the_encoders_weights_and_precision(tiny_folders):
    model = RestoreVAR.from_pretrained(tiny_folders["refiner"])
    digests = {encoder_digest(model, False), encoder_digest(model, True)}
    assert encoder_digest(RestoreVAR.from_pretrained(tiny_folders["tokenizer"]), False) in digests  # the same encoder
    with torch.no_grad():
        model.tokenizer.decoder.conv_in.weight.add_(1)
    assert encoder_digest(model, False) in digests
    with torch.no_grad():
        model.tokenizer.quant_conv.bias[0] += 1e-3
    assert len(digests | {encoder_digest(model, False)}) == 3


def test_a_folder_that_cannot_be_written(tiny_folders, tmp_path):
    (tmp_path / "file").write_text("")
    module = make_module(tiny_folders, tmp_path / "file")
    with pytest.raises(UserError, match=r"model\.latent_cache: .* cannot be written"):
        module.encode_pair(keyed_batch())


@pytest.mark.parametrize("stage", [2, 3])
def test_training_is_the_same_and_later_epochs_encode_the_degraded_photos_alone(
    stage, tiny_folders, tmp_path, data, monkeypatch
):
    counts = []
    kind = {2: TransformerModule, 3: RefinerModule}[stage]
    encode = kind.encode
    monkeypatch.setattr(kind, "encode", lambda module, images: counts.append(len(images)) or encode(module, images))
    weights = []
    for folder in (None, str(tmp_path / "cache")):
        module = kind(
            str(tiny_folders["refiner"]),
            optimizer=lambda groups: torch.optim.SGD(groups, 0.05),
            schedule=ConstantSchedule(),
            latent_cache=folder,
        )
        counts.clear()
        fit(module, None, tmp_path, steps=6, data=data())
        assert counts == ([6] * 6 if folder is None else [6, 6, 3, 3, 3, 3])  # two batches an epoch
        weights.append(module.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6


def test_random_crops_are_refused_before_the_first_step(tiny_folders, tmp_path, data):
    module = make_module(tiny_folders, tmp_path / "cache")
    with pytest.raises(UserError, match=r"turn off data\.random_crop, data\.vertical_flip, or leave"):
        fit(module, None, tmp_path, data=data(random_crop=True, vertical_flip=True))
    assert not (tmp_path / "cache").exists()
