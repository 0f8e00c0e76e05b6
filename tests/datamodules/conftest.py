from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_photos(folder: Path, count: int, size=(40, 60), seed: int = 0, suffix: str = ".png") -> list[Path]:
    """Smooth random photos, all different; seen by eye they are coloured clouds."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = folder / f"{index:03}{suffix}"
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 small photos."""
    write_photos(tmp_path / "photos", 12)
    return tmp_path / "photos"


@pytest.fixture
def pairs(tmp_path):
    """A folder with `input` and `target`, 5 pairs; the degraded ones are half as bright."""
    for path in write_photos(tmp_path / "set" / "target", 5, seed=1):
        dark = np.asarray(Image.open(path)) // 2
        (tmp_path / "set" / "input").mkdir(exist_ok=True)
        Image.fromarray(dark).save(tmp_path / "set" / "input" / path.name)
    return tmp_path / "set"
