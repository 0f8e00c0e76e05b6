import pytest
import torch

from restorevar.losses import AbsoluteError, SquaredError


def test_pixel_distances():
    decoded, clean = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert float(AbsoluteError()(decoded, clean)) == pytest.approx(0.5)
    assert float(SquaredError()(decoded, clean)) == pytest.approx(0.25)
    assert AbsoluteError(weight=0.3).weight == 0.3
