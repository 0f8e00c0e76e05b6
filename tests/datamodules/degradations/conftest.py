import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def read(name: str) -> np.ndarray:
    folder = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    return np.asarray(Image.open(folder / name).convert("RGB"))


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Real photographs, about 200 pixels high."""
    return [
        cv2.resize(photo, (photo.shape[1] * 200 // photo.shape[0], 200), interpolation=cv2.INTER_AREA)
        for photo in map(read, PHOTOS)
    ]


@pytest.fixture(scope="session")
def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """A photo of a garage and its measured distance (larger is farther, infinite where unknown)."""
    folder = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    with np.load(folder / "motorcycle_disp.npz") as file:
        disparity = file["arr_0"].astype(np.float64)
    distance = np.where(np.isfinite(disparity) & (disparity > 0), 1 / np.maximum(disparity, 1e-3), np.inf)
    return read("motorcycle_left.png"), distance.astype(np.float32)
