import pytest
import torch

from restorevar.losses import generator_loss, hinge_loss
from restorevar.models.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("layers", "side"), [(2, 8), (3, 4)])
def test_it_scores_patches(layers, side):
    assert PatchDiscriminator(8, layers)(torch.zeros(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_frozen_scores_are_the_same_with_gradients_to_the_image_alone():
    discriminator = PatchDiscriminator(8, 2)
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    scores = discriminator.frozen(image)
    assert torch.equal(scores, discriminator(image))
    generator_loss(scores).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_it_learns_to_tell_noise_from_flat():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8, 2)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    noise, flat = torch.randn(8, 3, 16, 16), torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16)
    for _ in range(30):
        optimizer.zero_grad()
        hinge_loss(discriminator(flat), discriminator(noise)).backward()
        optimizer.step()
    assert discriminator(flat).mean() > discriminator(noise).mean() + 1
