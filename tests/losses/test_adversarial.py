import pytest
import torch

from restorevar.losses import generator_loss, hinge_loss


def test_hinge_loss_stops_at_the_margin():
    assert float(hinge_loss(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0.0
    assert float(hinge_loss(torch.tensor([0.0]), torch.tensor([0.0]))) == pytest.approx(1.0)
    assert float(hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0]))) == pytest.approx(2.0)


def test_the_decoder_wants_high_scores():
    assert float(generator_loss(torch.tensor([3.0, 1.0]))) == pytest.approx(-2.0)
