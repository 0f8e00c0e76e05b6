import dataclasses
from pathlib import Path

import pytest
import torch

from restorevar.errors import UserError
from restorevar.models import DetailConfig, RestoreVAR
from tests.models.small import DETAIL, TOKENIZER, photos, randomize, small_config, small_model


@torch.no_grad()
def test_an_untrained_path_changes_nothing() -> None:
    model = RestoreVAR(small_config(detail=DETAIL)).eval()
    degraded = photos(model)
    assert torch.equal(model.generate(degraded, fidelity=1.0).image, model.generate(degraded, fidelity=0.0).image)


@torch.no_grad()
def test_fidelity_0_is_the_model_without_the_path() -> None:
    model, plain = small_model(detail=DETAIL), small_model()
    left = plain.load_state_dict(model.state_dict(), strict=False)
    assert all(name.startswith("detail.") for name in left.unexpected_keys)
    degraded = photos(model)
    expected = plain.generate(degraded).image
    assert torch.equal(model.generate(degraded, fidelity=0.0).image, expected)
    assert not torch.equal(model.generate(degraded).image, expected)


@torch.no_grad()
def test_fidelity_1_is_the_default_and_the_strength_is_continuous() -> None:
    model = small_model(detail=DETAIL)
    degraded = photos(model)
    images = {weight: model.generate(degraded, fidelity=weight).image for weight in (0.0, 0.001, 1.0)}
    assert torch.equal(model.generate(degraded).image, images[1.0])
    assert (images[0.001] - images[0.0]).abs().max() < 0.1 * (images[1.0] - images[0.0]).abs().max()


@torch.no_grad()
def test_one_fidelity_a_sample() -> None:
    model = small_model(detail=DETAIL)
    degraded = photos(model)
    pyramid = model.tokenizer.encoder.pyramid(degraded)
    latent = model.generate(degraded).refined_latent
    mixed = model.decode(latent, pyramid, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed[0], model.decode(latent, pyramid, 0.0)[0])
    torch.testing.assert_close(mixed[1], model.decode(latent, pyramid, 1.0)[1])


def test_gradients_reach_the_path() -> None:
    model = small_model(detail=DETAIL)
    assert model.detail is not None
    randomize(model.detail, 1)
    degraded = photos(model)
    with torch.no_grad():
        latent = model.generate(degraded).refined_latent
    model.decode(latent, model.tokenizer.encoder.pyramid(degraded), 1.0, clamp=False).square().mean().backward()
    untouched = [name for name, p in model.detail.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("patch", [1, 2])
def test_the_decoded_photo_itself_can_be_fused(patch: int) -> None:
    torch.manual_seed(0)
    sizes = dataclasses.replace(TOKENIZER, stem_patch=patch)
    changes = {"tokenizer": sizes, "detail": DetailConfig(16, 1, photo_width=16, photo_blocks=1, photo_context=4)}
    model = RestoreVAR(small_config(**changes)).eval()
    assert model.detail is not None
    assert model.detail.photo is not None
    degraded = photos(model)
    with torch.no_grad():
        pyramid, latent = model.tokenizer.encoder.pyramid(degraded), model.generate(degraded).refined_latent
        plain = model.decode(latent, pyramid, 0.0)
        assert torch.allclose(model.decode(latent, pyramid, 1.0), plain, atol=1e-6)
    optimizer = torch.optim.AdamW(model.detail.photo.parameters(), 3e-3)
    errors = []
    for _ in range(100):
        error = (model.decode(latent, pyramid, 1.0, clamp=False) - degraded).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error))
    assert errors[-1] < 0.8 * errors[0]
    untouched = [name for name, p in model.detail.photo.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    assert torch.allclose(model.decode(latent, pyramid, 0.0), plain, atol=1e-4)


def test_the_cosines_survive_a_model_folder(tmp_path: Path) -> None:
    model = RestoreVAR(small_config(detail=DetailConfig(16, 1, photo_width=16, photo_blocks=1))).eval()
    randomize(model, 0)
    model.save_pretrained(tmp_path / "model")
    loaded = RestoreVAR.from_pretrained(tmp_path / "model")
    degraded = photos(model)
    assert torch.equal(loaded.generate(degraded).image, model.generate(degraded).image)


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, float("nan")])
def test_fidelity_outside_0_to_1(fidelity: float) -> None:
    model = small_model(detail=DETAIL)
    with pytest.raises(UserError, match=r"fidelity is .*; expected a number from 0"):
        model.generate(photos(model), fidelity=fidelity)


def test_fidelity_without_a_path() -> None:
    model = small_model()
    with pytest.raises(UserError, match="this model has no detail path"):
        model.generate(photos(model), fidelity=0.5)
    assert model.resolve_fidelity(0) == 0.0
    assert model.resolve_fidelity(None) == 0.0
