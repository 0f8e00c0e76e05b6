import pytest
import torch

from restorevar.losses import AbsoluteError, NegativePSNR, SquaredError


def test_pixel_distances():
    decoded, clean = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert float(AbsoluteError()(decoded, clean)) == pytest.approx(0.5)
    assert float(SquaredError()(decoded, clean)) == pytest.approx(0.25)
    assert AbsoluteError(weight=0.3).weight == 0.3


def test_negative_psnr_is_a_mean_over_photos():
    decoded, clean = torch.zeros(2, 3, 4, 4), torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert float(NegativePSNR(floor=0.0)(decoded, clean)) == pytest.approx(-(20 + 40) / 2)
    assert float(NegativePSNR(floor=1e-4)(clean, clean)) == pytest.approx(-40)
