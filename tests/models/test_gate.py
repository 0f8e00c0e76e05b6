import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.errors import UserError
from restorevar.files import sha256
from restorevar.models import DetailConfig, GateConfig, RestoreVAR
from restorevar.models.gate import STATISTICS_COUNT, Correction, PhotoGate, photo_statistics
from restorevar.models.guided_filter import guided_filter
from restorevar.models.pretrained import weights_digest
from restorevar.models.published import unpublished_settings
from tests.models.small import DETAIL, TOKENIZER, photos, randomize, small_config, small_model

GATE = GateConfig(hidden=8)


def gated_model(**changes) -> RestoreVAR:
    """A small model whose gate keeps another share of every photo."""
    return small_model(gate=GATE, **changes)


def noisy(size: int = 4, side: int = 64) -> torch.Tensor:
    """Photos in [0, 1] that differ in brightness and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(size, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    levels = torch.linspace(0.0, 0.1, size).view(-1, 1, 1, 1)
    return (smooth + levels * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def test_statistics_are_finite_for_photos_without_any_contrast() -> None:
    for value in (0.0, 0.5, 1.0):
        flat = torch.full((2, 3, 32, 32), value)
        statistics = photo_statistics(flat, flat)
        assert statistics.shape == (2, STATISTICS_COUNT)
        assert torch.isfinite(statistics).all()


@torch.no_grad()
def test_black_and_white_show_in_the_statistics() -> None:
    photo = 0.2 + 0.6 * noisy(1)
    black, white = photo.clone(), photo.clone()
    black[..., :16, :16], white[..., :16, :16] = 0.0, 1.0
    before = photo_statistics(photo, photo)
    of_black, of_white = ((photo_statistics(other, photo) - before).abs()[0] > 1 for other in (black, white))
    assert (of_black & ~of_white).any()
    assert (of_white & ~of_black).any()


def test_statistics_do_not_hang_on_direction_or_neighbours_in_the_batch() -> None:
    degraded = noisy()
    restored = degraded.flip(0) * 0.8
    statistics = photo_statistics(degraded, restored)
    torch.testing.assert_close(photo_statistics(degraded.flip(3), restored.flip(3)), statistics, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(photo_statistics(degraded[1:2], restored[1:2]), statistics[1:2], rtol=1e-4, atol=1e-4)


def test_noise_and_brightness_show_in_the_statistics() -> None:
    clean = noisy(1)
    noise = (clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for other in (noise, clean * 0.5):
        assert (photo_statistics(other, clean) - photo_statistics(clean, clean)).abs().max() > 0.2


@settings(max_examples=20, deadline=None)
@given(st.integers(32, 70), st.integers(32, 70))
def test_statistics_of_any_size(height: int, width: int) -> None:
    statistics = photo_statistics(torch.rand(1, 3, height, width), torch.rand(1, 3, height, width))
    assert torch.isfinite(statistics).all()


@torch.no_grad()
def test_a_gate_that_keeps_all_gives_the_photo_back_and_one_that_keeps_nothing_the_restoration() -> None:
    gate, degraded = PhotoGate(dataclasses.replace(GATE, filter_radius=0)).eval(), noisy() * 2 - 1
    restored = degraded.flip(0)
    for bias, expected in ((30.0, degraded), (-30.0, restored)):
        gate.fc2.bias[0] = bias
        torch.testing.assert_close(gate(restored, degraded, 1.0), expected)
        torch.testing.assert_close(gate(restored, degraded, 0.25), restored + 0.25 * (expected - restored))


@torch.no_grad()
def test_the_shift_moves_colours_of_what_is_not_kept() -> None:
    gate, restored = PhotoGate(GATE).eval(), noisy() - 0.5
    gate.fc2.bias.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0]))
    moved = gate(restored, restored, 1.0) - restored
    # half is kept; 0.03 of the range [0, 1] is 0.06 of [-1, 1]
    torch.testing.assert_close(moved.mean((0, 2, 3)), torch.tensor([0.03, 0.0, -0.03]), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_the_gain_strengthens_what_is_not_kept() -> None:
    gate, photo = PhotoGate(dataclasses.replace(GATE, filter_radius=0)).eval(), noisy() * 0.5
    gate.fc2.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0]))
    # half is kept, a fifth is added to the other half
    torch.testing.assert_close((gate(photo * 2 - 1, photo * 2 - 1, 1.0) + 1) / 2, 1.1 * photo)


@torch.no_grad()
def test_the_restored_photo_is_filtered_by_the_degraded_one() -> None:
    gate, degraded = PhotoGate(GATE).eval(), noisy()
    noise = torch.randn(degraded.shape, generator=torch.Generator().manual_seed(2))
    restored = (0.5 * degraded + 0.1 + 0.02 * noise).clamp(0, 1)
    gate.fc2.bias[0] = -30.0
    filtered = guided_filter(degraded, restored, GATE.filter_radius, GATE.filter_epsilon)
    for weight in (1.0, 0.25):
        expected = restored + weight * (filtered - restored)
        torch.testing.assert_close((gate(restored * 2 - 1, degraded * 2 - 1, weight) + 1) / 2, expected)
    assert (filtered - 0.5 * degraded).std() < 0.5 * (restored - 0.5 * degraded).std()
    assert gate.reach == 2 * GATE.filter_radius


@torch.no_grad()
def test_a_photo_of_several_tiles_is_judged_by_their_mean_and_its_colours_by_the_shrunk_photo_too() -> None:
    gate = PhotoGate(GATE).eval()
    torch.nn.init.normal_(gate.fc2.weight)
    degraded = noisy()
    tiles, shrunk = (photo_statistics(photos, photos.flip(0)) for photos in (degraded, degraded[:1] * 0.5))
    near, far = gate.read(tiles.mean(0, keepdim=True)), gate.read(shrunk)
    torch.testing.assert_close(gate.decide(tiles, None), near)
    between = Correction(near.share, (near.shift + far.shift) / 2, (near.gain + far.gain) / 2)
    torch.testing.assert_close(gate.decide(tiles, shrunk), between)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate.decide(tiles, None).share, near.share)
    # of a photo of equal tiles nothing changes
    torch.testing.assert_close(gate.decide(shrunk.expand(3, -1), shrunk), gate.read(shrunk))


@torch.no_grad()
@pytest.mark.parametrize("detail", [None, DETAIL])
def test_fidelity_0_is_the_model_without_gate(detail: DetailConfig | None) -> None:
    model, plain = gated_model(detail=detail), small_model(detail=detail)
    assert plain.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    degraded = photos(model)
    assert torch.equal(model.generate(degraded, fidelity=0.0).image, plain.generate(degraded, fidelity=0.0).image)
    # the gate's share by hand
    ungated = plain.generate(degraded).image * 2 - 1
    assert model.gate is not None
    expected = (model.gate(ungated, degraded, 1.0).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(model.generate(degraded).image, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain.generate(degraded).image).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("fidelity", [0.5, None])
def test_a_tile_can_be_had_without_the_gate(fidelity: float | None) -> None:
    model, plain = gated_model(detail=DETAIL), small_model(detail=DETAIL)
    plain.load_state_dict(model.state_dict(), strict=False)
    degraded = photos(model)
    ungated = model.generate(degraded, fidelity=fidelity, gated=False).image
    torch.testing.assert_close(ungated, plain.generate(degraded, fidelity=fidelity).image, rtol=1e-4, atol=1e-4)
    assert (ungated - model.generate(degraded, fidelity=fidelity).image).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
def test_the_degraded_photo_reaches_the_gate_as_it_came(patch: int) -> None:
    sizes = dataclasses.replace(TOKENIZER, stem_patch=patch)
    model = RestoreVAR(small_config(tokenizer=sizes, gate=GATE)).eval().set_precision(torch.bfloat16)
    assert model.gate is not None
    model.gate.fc2.bias[0] = 100.0
    degraded = photos(model) * 0.7
    torch.testing.assert_close(model.generate(degraded).image, (degraded + 1) / 2)


@torch.no_grad()
def test_one_fidelity_a_sample() -> None:
    model = gated_model(detail=DETAIL)
    degraded = photos(model)
    pyramid, latent = model.tokenizer.encoder.pyramid(degraded), model.generate(degraded).refined_latent
    mixed = model.decode(latent, pyramid, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed[0], model.decode(latent, pyramid, 0.0)[0])
    torch.testing.assert_close(mixed[1], model.decode(latent, pyramid, 1.0)[1])


@torch.no_grad()
def test_a_new_gate_is_as_ready_as_its_model() -> None:
    model = small_model().eval().set_gate(GATE)
    assert not model.gate.training
    given = photos(model)[:1]
    torch.testing.assert_close(model.generate(given).image, model.generate(given).image)
    assert small_model().train().set_gate(GATE).gate.training


def test_a_model_folder_keeps_the_gate(tmp_path: Path) -> None:
    model = RestoreVAR(small_config(gate=GATE))
    randomize(model, 0)
    assert model.gate is not None
    model.gate.train()
    model.gate.norm(photo_statistics(noisy(), noisy().flip(0)))
    model.eval().save_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    loaded = RestoreVAR.from_pretrained(tmp_path / "model")
    assert loaded.gate is not None
    assert int(loaded.gate.norm.num_batches_tracked) == 1
    torch.testing.assert_close(loaded.gate.norm.running_mean, model.gate.norm.running_mean, rtol=1e-2, atol=1e-2)
    assert unpublished_settings(loaded.config)[0] == "gate"


def test_the_gate_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    model, folder = gated_model(), tmp_path / "model"
    small_model().save_pretrained(folder)
    digest = weights_digest(folder)
    model.save_pretrained(folder)
    assert weights_digest(folder).startswith(f"{digest}, gate ")
    assert json.loads((folder / "config.json").read_text())["gate_sha256"] == sha256(folder / "gate.safetensors")
    assert RestoreVAR.from_pretrained(folder).gate is not None
    (folder / "gate.safetensors").rename(tmp_path / "gate")
    with pytest.raises(UserError, match=r"gate\.safetensors cannot be read"):
        RestoreVAR.from_pretrained(folder)
    (tmp_path / "gate").rename(folder / "gate.safetensors")
    small_model().save_pretrained(folder)  # one without a gate leaves none behind
    assert not (folder / "gate.safetensors").exists()
    assert weights_digest(folder) == digest


def test_wrong_sizes() -> None:
    with pytest.raises(UserError, match="gate hidden is 0"):
        small_config(gate=GateConfig(hidden=0))
    with pytest.raises(UserError, match=r"gate dropout is 1\.0"):
        small_config(gate=GateConfig(dropout=1.0))
    with pytest.raises(UserError, match=r"gate filter_epsilon is 1e-07; expected a number from 1e-5"):
        small_config(gate=GateConfig(filter_epsilon=1e-7))
