import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.models.guided_filter import guided_filter


def reference(guide: np.ndarray, image: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """(H, W, 3) and (H, W): every window fitted by itself, then the fits of all windows around a pixel averaged."""
    height, width = image.shape
    pad = 2 * radius
    guide = np.pad(guide, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    image = np.pad(image, pad, mode="edge")
    fits = np.zeros((height + pad, width + pad, 4))
    for row in range(height + pad):
        for column in range(width + pad):
            window = np.s_[row : row + pad + 1, column : column + pad + 1]
            colours, values = guide[window].reshape(-1, 3), image[window].ravel()
            centred = colours - colours.mean(0)
            covariance = centred.T @ centred / len(values) + epsilon * np.eye(3)
            slopes = np.linalg.solve(covariance, centred.T @ (values - values.mean()) / len(values))
            fits[row, column] = [*slopes, values.mean() - slopes @ colours.mean(0)]
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            fit = fits[row : row + pad + 1, column : column + pad + 1].reshape(-1, 4).mean(0)
            result[row, column] = fit[:3] @ guide[row + pad, column + pad] + fit[3]
    return result


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_it_is_what_fitting_every_window_gives(radius: int) -> None:
    random = np.random.default_rng(radius)
    guide, image = random.random((11, 8, 3)), random.random((11, 8))
    expected = reference(guide, image, radius, 1e-3)
    tensor = torch.from_numpy(guide).permute(2, 0, 1)[None]
    found = guided_filter(tensor, torch.from_numpy(image)[None, None], radius, 1e-3)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_an_affine_function_of_the_guide_comes_back(height: int, width: int, radius: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    guide = torch.rand(2, 3, height, width, generator=random, dtype=torch.float64)
    slopes, offset = torch.randn(2, 4, 3, generator=random, dtype=torch.float64), 0.3
    image = torch.einsum("bij,bjhw->bihw", slopes, guide) + offset
    found = guided_filter(guide, image, radius, 1e-7)
    torch.testing.assert_close(found, image, rtol=1e-3, atol=1e-3)


def test_single_precision_is_enough_for_grey_photos_of_high_contrast() -> None:
    random = torch.Generator().manual_seed(0)
    grey = torch.rand(1, 1, 60, 60, generator=random).round().repeat(1, 3, 1, 1) * 0.9 + 0.05
    image = torch.rand(1, 3, 60, 60, generator=random)
    exact = guided_filter(grey.double(), image.double(), 8, 3e-5)
    torch.testing.assert_close(guided_filter(grey, image, 8, 3e-5).double(), exact, rtol=0, atol=2e-4)


def test_where_the_guide_is_smooth_a_grid_goes_and_where_it_has_an_edge_the_edge_stays() -> None:
    guide = torch.full((1, 3, 128, 128), 0.8)
    guide[..., 64:] = 0.2
    image = 0.5 * guide + 0.02 * ((torch.arange(128) // 4) % 2).float()  # a grid of a decoder's cells
    found = guided_filter(guide, image, 8, 3e-5)
    assert found[..., 32:96].sub(0.5 * guide[..., 32:96]).std() < 0.15 * 0.01
    assert abs(float(found[..., 63].mean() - found[..., 64].mean()) - 0.3) < 0.02


def test_a_pixel_depends_on_what_is_within_twice_the_radius() -> None:
    random = torch.Generator().manual_seed(0)
    guide, image = torch.rand(1, 3, 40, 40, generator=random), torch.rand(1, 3, 40, 40, generator=random)
    whole = guided_filter(guide, image, 3, 1e-4)
    part = guided_filter(guide[..., 10:, 5:], image[..., 10:, 5:], 3, 1e-4)
    torch.testing.assert_close(part[..., 6:, 6:], whole[..., 16:, 11:], rtol=1e-4, atol=1e-5)
    other = guide.clone()
    other[..., :16, :] = 0
    assert (guided_filter(other, image, 3, 1e-4)[..., 21, :] - whole[..., 21, :]).abs().max() > 1e-4
    torch.testing.assert_close(guided_filter(other, image, 3, 1e-4)[..., 22:, :], whole[..., 22:, :])
