"""Finds the parameters of the classical baselines by PSNR on training photos.

    python scripts/tune_baselines.py FOLDER ... [--photos 48] [--side 384] [--seed 0]

Each photo is cropped in the middle, degraded once per kind with a severity drawn from U(0.1, 1), and every method tries
every point of its grid. The winners go into the defaults of `restorevar/evaluation/baselines.py` by hand. Use photos
that no test set holds.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.sources import list_photos
from restorevar.errors import UserError
from restorevar.evaluation.baselines import (
    Bilateral,
    Clahe,
    Classical,
    ContrastStretch,
    DarkChannel,
    Gamma,
    Median,
    RichardsonLucy,
    Wiener,
    oracle_deconvolution,
)
from restorevar.restoration.photo import read_rgb

Pixels = NDArray[np.uint8]


def candidates() -> Iterator[Classical]:
    """Every point of every grid."""
    for percent, strength in itertools.product((0.01, 0.1, 0.5, 1.0), (0.25, 0.5, 0.75, 1.0)):
        yield ContrastStretch(percent, strength)
    for omega, least, patch in itertools.product((0.5, 0.65, 0.8, 0.95), (0.1, 0.2, 0.35, 0.5), (7, 15)):
        yield DarkChannel(patch, omega, least)
    for clip, tiles in itertools.product((1.0, 2.0, 4.0, 8.0, 16.0), (1, 2, 4, 8)):
        yield Clahe(clip, tiles)
    for target in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        yield Gamma(target)
    for size in (3, 5, 7):
        yield Median(size)
    for color, space in itertools.product((5.0, 10.0, 20.0, 40.0, 80.0), (1.0, 2.0, 4.0)):
        yield Bilateral(color, space)
    for sigma, balance in itertools.product((0.7, 1.4, 2.0, 3.0, 4.0), (0.03, 0.1, 0.3, 1.0, 3.0)):
        yield Wiener(sigma, balance)
    for sigma, iterations in itertools.product((0.7, 1.4, 2.0, 3.0, 4.0), (2, 5, 10)):
        yield RichardsonLucy(sigma, iterations)


def main() -> None:
    """Runs the search and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    try:
        files = sorted(path for folder in options.folders for path in list_photos(folder))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    generator = np.random.default_rng(options.seed)
    chosen = generator.permutation(len(files))[: options.photos]
    kinds = ("haze", "rain", "snow", "low_light", "motion_blur")
    pairs: dict[str, list[tuple[Pixels, Pixels]]] = {kind: [] for kind in kinds}
    for index in chosen:
        photo = read_rgb(files[index])
        side = min(options.side, *photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        photo = np.ascontiguousarray(photo[top : top + side, left : left + side])
        for kind in kinds:
            severity, seed = float(generator.uniform(0.1, 1)), int(generator.integers(2**31))
            pairs[kind].append((degrade(photo, kind, severity, seed)[0], photo))

    def mean(kind: str, method: Classical) -> float:
        return float(np.mean([cv2.PSNR(method(degraded), clean) for degraded, clean in pairs[kind]]))

    for kind in kinds:
        print(f"{kind:12s} {'input':34s} {np.mean([cv2.PSNR(*pair) for pair in pairs[kind]]):6.2f} dB")
    best: dict[tuple[str, ...], tuple[float, Classical]] = {}
    for method in candidates():
        score = float(np.mean([mean(kind, method) for kind in method.kinds]))
        key = (*method.kinds, method.name)
        if key not in best or score > best[key][0]:
            best[key] = (score, method)
    for (*of, _), (score, method) in best.items():
        print(f"{' '.join(of):12s} {method!r:70s} {score:6.2f} dB")
    oracle = np.mean([cv2.PSNR(oracle_deconvolution(*pair), pair[1]) for pair in pairs["motion_blur"]])
    print(f"{'motion_blur':12s} {'oracle deconvolution (nothing to tune)':70s} {oracle:6.2f} dB")


if __name__ == "__main__":
    main()
