import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from restorevar.errors import UserError
from restorevar.models import GateConfig
from restorevar.models.gate import photo_statistics
from restorevar.restoration import restorer as restorer_module
from restorevar.restoration.photo import read_rgb
from restorevar.restoration.restorer import Restorer, restore_photo
from tests.restoration.stubs import StubModel, tiny_model


def brighten(tiles):
    return (tiles * 1.25 + 0.02).clamp(0, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_an_image_comes_back_as_an_image_of_its_size_and_kind(mode, height, width):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 250)
    else:
        image = Image.fromarray(values).convert(mode)
    restored = restore_photo(StubModel(), image)
    expected = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    assert restored.mode == expected
    assert restored.size == image.size
    reference = image if mode == "I;16" else image.convert(expected)
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(reference))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", ""])
def test_an_image_comes_back_upright_with_its_profile_and_exif(tmp_path, suffix, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "Maker"
    if suffix:
        image.save(tmp_path / f"a.{suffix}", exif=exif.tobytes(), icc_profile=b"profile", dpi=(300, 300))
        image = Image.open(tmp_path / f"a.{suffix}")
        expected = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}"))
    else:  # never was a file
        image.info |= {"exif": exif.tobytes(), "icc_profile": b"profile"}
        expected = ImageOps.exif_transpose(image)
    restored = restore_photo(StubModel(), image)
    assert restored.size == ((30, 50) if orientation == 6 else (50, 30))
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(expected))
    restored.save(tmp_path / "b.jpg", exif=restored.getexif(), icc_profile=restored.info["icc_profile"])
    for carrier in (restored, Image.open(tmp_path / "b.jpg")):
        assert carrier.info["icc_profile"] == b"profile"
        assert carrier.getexif()[ExifTags.Base.Orientation] == 1
        assert carrier.getexif()[ExifTags.Base.Make] == "Maker"


def test_cmyk_goes_through_its_profile_as_a_file_does(tmp_path, monkeypatch):
    def convert(image, source, target, outputMode):  # noqa: N803  # Pillow's name
        return Image.new(outputMode, image.size, (10, 20, 30))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)  # Pillow comes without a CMYK profile
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (50, 30)).save(tmp_path / "a.tif", icc_profile=profile)
    with Image.open(tmp_path / "a.tif") as image:
        restored = np.asarray(restore_photo(StubModel(), image))
    assert (restored == (10, 20, 30)).all()
    np.testing.assert_array_equal(restored, read_rgb(tmp_path / "a.tif"))


def test_deep_grey_with_a_transparent_value_stays_deep(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (30, 50)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=int(values[0, 0]))
    with Image.open(tmp_path / "a.png") as image:
        assert "transparency" in image.info
        np.testing.assert_array_equal(np.asarray(restore_photo(StubModel(), image)), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 1), (70, 90, 2), (70, 90, 3), (70, 90, 4)])
def test_an_array_comes_back_with_its_shape_type_and_alpha(shape, dtype):
    values = np.random.default_rng(0).random(shape)
    limit = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    photo = (values * limit).astype(dtype)
    restored = restore_photo(StubModel(brighten), photo, global_correction="off")
    assert restored.shape == shape
    assert restored.dtype == dtype
    colours = {2: 1, 4: 3}.get(shape[-1] if len(shape) == 3 else 0)
    if colours:
        np.testing.assert_array_equal(restored[..., colours:], photo[..., colours:])
    expected = np.clip(photo[..., :colours].astype(float) / limit * 1.25 + 0.02, 0, 1)
    np.testing.assert_allclose(restored[..., :colours].astype(float) / limit, expected, atol=3e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 70, 90), (2, 3, 70, 30)])
def test_a_tensor_comes_back_with_its_shape_and_type(shape, dtype):
    torch.manual_seed(0)
    photo = torch.rand(shape)
    photo = (photo * 255).to(dtype) if dtype == torch.uint8 else photo.to(dtype)
    restored = restore_photo(StubModel(), photo)
    assert restored.shape == photo.shape
    torch.testing.assert_close(restored, photo, atol=1e-6, rtol=0)


def test_fidelity_reaches_the_model():
    model = StubModel()
    restore_photo(model, np.zeros((8, 8, 3), np.uint8), fidelity=0.5)
    assert model.fidelities == [0.5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": 100}, "own size"),
        ({"overlap": -1}, "overlap is -1"),
        ({"overlap": 33}, "0 to 32"),
        ({"fidelity": 1.5}, "fidelity is 1.5"),
        ({"color_fix": "mena"}, "expected one of: none, mean, wavelet"),
        ({"global_correction": "maybe"}, "on, off"),
    ],
)
def test_wrong_options_are_short_errors(options, words):
    with pytest.raises(UserError, match=words):
        restore_photo(StubModel(), np.zeros((8, 8, 3), np.uint8), **options)


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (np.zeros((8, 8, 5), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "none of them 0"),
        (np.zeros((8, 8, 3), np.int32), "int32"),
        (np.full((8, 8, 3), 3.0), r"expected \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), "nan"),
        (torch.zeros(8, 8, 3), r"\(3, H, W\)"),
        (Image.new("F", (8, 8)), "mode F"),
        ("photo.jpg", "str"),
    ],
)
def test_wrong_photos_are_short_errors(photo, words):
    with pytest.raises(UserError, match=words):
        restore_photo(StubModel(), photo)


def test_out_of_memory_is_met_once_with_fewer_tiles():
    notes = []

    def small_batches_only(tiles):
        if len(tiles) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tiles

    model = StubModel(small_batches_only)
    photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    restorer = Restorer(model, note=notes.append, global_correction="off")
    np.testing.assert_array_equal(restorer.restore(photo), photo)
    assert len(notes) == 1
    assert "one at a time" in notes[0]
    restorer.restore(photo)
    assert len(notes) == 1


def test_out_of_memory_with_a_single_tile_is_a_short_error():
    def never(tiles):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="no smaller size"):
        restore_photo(StubModel(never), np.zeros((8, 8, 3), np.uint8))


def test_out_of_memory_with_a_single_tile_is_met_with_a_smaller_one(monkeypatch):
    model, notes = tiny_model(), []
    generate = model.generate

    def limited(tiles, fidelity=None):
        if tiles.shape[-1] > 16:
            raise MemoryError
        return generate(tiles, fidelity)

    monkeypatch.setattr(model, "generate", limited)
    restored = restore_photo(model, np.zeros((40, 40, 3), np.uint8), note=notes.append)
    assert restored.shape == (40, 40, 3)
    assert "16 px" in notes[0]


def test_out_of_memory_is_met_with_fewer_tiles_then_with_ever_smaller_ones(monkeypatch):
    model, notes, shares = tiny_model(), [], []
    generate = model.generate
    calls = iter(range(1000))

    def at_most_16_px(tiles, fidelity=None):
        if len(tiles) > 1 or (tiles.shape[-1] > 16 and next(calls) > 2):
            raise MemoryError
        return generate(tiles, fidelity)

    monkeypatch.setattr(model, "generate", at_most_16_px)
    restorer = Restorer(model, note=notes.append)
    restored = restorer.restore(np.zeros((150, 150, 3), np.uint8), shares.append)
    assert restored.shape == (150, 150, 3)
    assert ["one at a time" in note for note in notes] == [True, False]
    assert restorer.tile == (16, 16)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0


def test_tiles_go_one_at_a_time_where_memory_cannot_be_told(monkeypatch):
    monkeypatch.setattr(restorer_module, "peak_memory", lambda call, device: call())
    sizes = []

    def note_batch(tiles):
        sizes.append(len(tiles))
        return tiles

    restore_photo(StubModel(note_batch), np.zeros((200, 200, 3), np.uint8))
    assert set(sizes) == {1}


@pytest.mark.parametrize("refiner", ["attention", "convolution"])
def test_another_size_of_tile_leaves_the_model_as_it_was(refiner):
    model = tiny_model(refiner).requires_grad_(False)
    tensors = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    own = model.restore(photo)
    other = model.restore(photo, tile=48)
    assert other.shape == own.shape
    assert (other != own).any()
    assert model.image_size == (32, 32)
    # a captured graph or an optimizer may hold them
    assert {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]} == tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert not value.is_inference()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    np.testing.assert_array_equal(model.restore(photo), own)
    for tile in (50, 100_000):  # the latter would take all memory there is
        with pytest.raises(UserError, match="multiple of 4 from 16 to 256"):
            model.restore(photo, tile=tile)


def test_the_real_model_restores_alike_with_and_without_neighbours_in_the_batch():
    model = tiny_model()
    photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    assert model.restore(photo).shape == (60, 60, 3)
    one = Restorer(model)
    one._batch_limit = 1
    assert np.abs(one.restore(photo).astype(int) - model.restore(photo)).max() <= 1


@pytest.mark.gpu
def test_a_gpu_takes_many_tiles_at_once_and_agrees_with_the_cpu():
    model = tiny_model()
    photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    expected = model.restore(photo)
    restorer = Restorer(model.to("cuda"))
    restored = restorer.restore(photo)
    assert restorer._batch_size() > 1
    assert np.abs(restored.astype(int) - expected).mean() < 1  # a token may flip where two are as near


def gated_model():
    """A real model whose gate decides otherwise for every tile."""
    model = tiny_model(gate=GateConfig(hidden=8))
    with torch.no_grad():
        torch.nn.init.normal_(model.gate.fc2.weight, std=4.0)
        model.gate.fc2.bias.zero_()
    return model


@pytest.mark.parametrize(("fidelity", "correction"), [(None, "on"), (0.5, "on"), (None, "off")])
def test_a_gate_decides_once_for_all_tiles_of_a_photo(fidelity, correction):
    model, plain = gated_model(), tiny_model()
    pixels = np.random.default_rng(0).random((50, 70, 3), np.float32) * np.linspace(0, 1, 70, dtype=np.float32)[:, None]
    tiles = []
    generate = plain.generate

    def watched(degraded, fidelity=None):
        result = generate(degraded)
        tiles.append(photo_statistics((degraded + 1) / 2, result.image))
        return result

    plain.generate = watched
    ungated = Restorer(plain, overlap=8, global_correction=correction).restore(pixels)
    as_tensor = lambda photo: torch.from_numpy(photo).permute(2, 0, 1)[None]  # noqa: E731
    with torch.no_grad():
        shrunk = tiles.pop(0) if correction == "on" else None
        decision = model.gate.decide(torch.cat(tiles), shrunk)
        expected = model.gate.blend(as_tensor(ungated), as_tensor(pixels), decision, fidelity or 1.0)
        each = torch.cat([model.gate.read(tile).share for tile in tiles])
    assert each.max() - each.min() > 0.05  # or else the test shows nothing
    restored = Restorer(model, overlap=8, fidelity=fidelity, global_correction=correction).restore(pixels)
    np.testing.assert_allclose(restored, expected[0].permute(1, 2, 0).clamp(0, 1).numpy(), atol=1e-5)
    assert np.abs(restored - ungated).max() > 0.05


def test_memory_that_runs_out_leaves_no_trace_in_what_a_gate_decides(monkeypatch):
    pixels = np.random.default_rng(0).random((50, 70, 3), np.float32)
    expected = Restorer(gated_model()).restore(pixels)
    model, notes, calls = gated_model(), [], []
    restorer = Restorer(model, note=notes.append)
    generate = model.generate

    def failing(degraded, **options):
        calls.append(len(degraded))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return generate(degraded, **options)

    model.generate = failing
    monkeypatch.setattr(restorer, "_batch_size", lambda: 2 if len(calls) < 3 else 1)
    monkeypatch.setattr(restorer, "_shrink", lambda: notes.append("again"))
    np.testing.assert_allclose(restorer.restore(pixels), expected, atol=1e-5)
    assert notes == ["again"]
    assert calls[3:] == [1] * (len(calls) - 3)


@pytest.mark.parametrize("batch", [1, 4])
def test_what_a_gate_decides_does_not_hang_on_how_many_tiles_go_together(batch, monkeypatch):
    pixels = np.random.default_rng(0).random((50, 70, 3), np.float32)
    expected = Restorer(gated_model()).restore(pixels)
    restorer = Restorer(gated_model())
    monkeypatch.setattr(restorer, "_batch_size", lambda: batch)
    np.testing.assert_allclose(restorer.restore(pixels), expected, atol=1e-5)


def test_a_gated_model_in_bfloat16():
    pixels = np.random.default_rng(0).random((50, 70, 3), np.float32)
    model = gated_model().set_precision(torch.bfloat16)
    restored = Restorer(model).restore(pixels)
    assert np.isfinite(restored).all()
    with torch.no_grad():
        model.gate.fc2.bias[0] = 100.0
    np.testing.assert_allclose(Restorer(model).restore(pixels), pixels, atol=1e-6)
    assert np.abs(restored - pixels).max() > 0.05


def test_an_image_through_a_gated_model_brings_no_warning():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_photo(gated_model(), image)


def test_at_fidelity_0_a_gate_says_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    found = Restorer(gated_model(), fidelity=0.0).restore(pixels)
    np.testing.assert_array_equal(found, Restorer(tiny_model()).restore(pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gate_that_keeps_all_gives_a_photo_of_many_tiles_back(dtype):
    model = gated_model()
    with torch.no_grad():
        model.gate.fc2.bias[0] = 100.0
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (50, 70, 3), dtype)
    np.testing.assert_array_equal(Restorer(model).restore(pixels), pixels)
