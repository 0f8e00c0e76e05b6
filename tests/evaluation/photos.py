"""Real pairs from the photographs inside scikit-image's package."""

from pathlib import Path

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FOLDER = Path(skimage.__file__).parent / "data"
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def photo(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """A crop from the middle."""
    image = np.asarray(Image.open(FOLDER / name).convert("RGB"))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def pairs(height: int = 181, width: int = 204) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """(degraded, clean): JPEG-like noise, darkness, haze and blur of growing strength; odd and even sides."""
    generator = np.random.default_rng(0)
    made = []
    for index, name in enumerate(NAMES):
        clean = photo(name, height, width)
        image = clean.astype(np.float64)
        degraded = (
            image + generator.normal(0, 25, image.shape),
            image * 0.3,
            image * 0.4 + 140,
            (image + np.roll(image, 3, 1) + np.roll(image, -3, 1)) / 3,
        )[index]
        made.append((degraded.round().clip(0, 255).astype(np.uint8), clean))
    return made


def tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
