import logging

import pytest
import torch

from restorevar.losses import MultiScaleSimilarity, PerceptualDistance
from restorevar.losses.perceptual import scale_count


@pytest.mark.parametrize(("side", "count"), [(512, 5), (176, 5), (175, 4), (128, 4), (64, 3), (32, 2), (11, 1)])
def test_scales_that_fit(side, count):
    assert scale_count(side) == count


@pytest.mark.parametrize("side", [32, 64, 176])
def test_similarity_is_0_for_equals_and_grows_with_noise(side):
    torch.manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, size=side, mode="bicubic").clamp(-1, 1)
    loss = MultiScaleSimilarity()
    assert float(loss(clean, clean)) == pytest.approx(0.0, abs=1e-5)
    noise = torch.randn_like(clean)
    little, much = float(loss(clean + 0.05 * noise, clean)), float(loss(clean + 0.3 * noise, clean))
    assert 0 < little < much < 1


def test_similarity_has_gradients_even_for_opposites():
    clean = torch.rand(1, 3, 32, 32) * 2 - 1
    decoded = (-clean).requires_grad_()
    MultiScaleSimilarity()(decoded, clean).backward()
    assert torch.isfinite(decoded.grad).all()


def test_without_weights_lpips_is_left_out_with_one_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loss, image = PerceptualDistance(), torch.zeros(1, 3, 64, 64)
    with caplog.at_level(logging.WARNING):
        assert float(loss(image, image)) == float(loss(image, image)) == 0.0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "alexnet" in caplog.text
