"""Are the borders of tiles seen, and which way of levelling them is better?

    python benchmarks/seams.py PHOTO ... --model NAME_OR_FOLDER [--tile auto] [--severity 0.6] [--kinds haze rain ...]

Degrades clean photographs, restores them with and without the global correction, and prints

* PSNR against the clean photo,
* the seam ratio in smooth regions (sky, walls): the mean gradient across a tile's border over the mean gradient 4 to 16
  pixels away from it, for every piece of a border that lies in such a region; median and 95th percentile, and beside
  them the same for lines in the middle of tiles, where there is no seam.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar import RestoreVAR
from restorevar.datamodules.degradations import degrade
from restorevar.restoration.photo import read_rgb
from restorevar.restoration.restorer import Restorer
from restorevar.restoration.tiling import Axis

PIECE = 32
SMOOTH = 3.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--severity", type=float, default=0.6)
    parser.add_argument("--kinds", nargs="+", default=["haze", "low_light", "rain", "snow", "motion_blur"])
    options = parser.parse_args()
    model = RestoreVAR.from_pretrained(options.model)
    tile = options.tile if options.tile == "auto" else int(options.tile)
    print(
        f"{'kind':<10} {'correction':<10} {'degraded':>8} {'restored':>8} {'seam median':>12} {'95 %':>6} "
        f"{'no seam: median':>16} {'95 %':>6} {'pieces':>7}"
    )
    for kind in options.kinds:
        for correction in ("off", "on"):
            restorer = Restorer(model, tile=tile, global_correction=correction)
            scores, before = [], []
            ratios: list[float] = []
            elsewhere: list[float] = []
            for seed, path in enumerate(options.photos):
                clean = read_rgb(path)
                degraded, _ = degrade(clean, kind, options.severity, seed)
                restored = restorer.restore(degraded)
                before.append(cv2.PSNR(degraded, clean))
                scores.append(cv2.PSNR(restored, clean))
                ratios += seam_ratios(restored, clean, restorer.tile, restorer.overlap, _borders)
                elsewhere += seam_ratios(restored, clean, restorer.tile, restorer.overlap, _middles)
            median, high = np.percentile(ratios or [np.nan], [50, 95])
            control, control_high = np.percentile(elsewhere or [np.nan], [50, 95])
            print(
                f"{kind:<10} {correction:<10} {np.mean(before):8.2f} {np.mean(scores):8.2f} {median:12.2f} {high:6.2f} "
                f"{control:16.2f} {control_high:6.2f} {len(ratios):7d}",
                flush=True,
            )


def seam_ratios(
    restored: NDArray[np.uint8],
    clean: NDArray[np.uint8],
    tile: tuple[int, int],
    overlap: int,
    lines: Callable[[Axis], Iterable[int]],
) -> list[float]:
    """Gradient across lines over the gradient beside them, one number a piece that is smooth in the clean photo."""
    ratios: list[float] = []
    for axis in (0, 1):
        image, truth = (np.moveaxis(photo, axis, 0).astype(np.float32).mean(2) for photo in (restored, clean))
        across = np.abs(np.diff(image, axis=0))
        rough = cv2.blur(np.abs(np.diff(truth, axis=0)), (PIECE, PIECE))
        for border in lines(Axis(image.shape[0], tile[axis], overlap)):
            if not 20 <= border < image.shape[0] - 20:
                continue
            for left in range(0, image.shape[1] - PIECE, PIECE):
                piece = slice(left, left + PIECE)
                if rough[border - 16 : border + 17, piece].max() > SMOOTH:
                    continue
                beside = np.concatenate(
                    [across[border - 16 : border - 3, piece], across[border + 4 : border + 17, piece]]
                )
                # a quarter of a grey level: in regions without any gradient a ratio means nothing
                ratios.append(float((across[border, piece].mean() + 0.25) / (beside.mean() + 0.25)))
    return ratios


def _borders(axis: Axis) -> Iterator[int]:
    """Where tiles begin, end, and meet: index of the difference between the pixel and the next one."""
    for before, after in zip(axis.starts, axis.starts[1:], strict=False):
        end = before + axis.tile
        yield from {after - 1, end - 1, (after + end) // 2 - 1}


def _middles(axis: Axis) -> list[int]:
    """Lines as far from borders as can be, on the same grid of latent cells."""
    return [start + axis.tile // 2 - 1 for start in axis.starts]


if __name__ == "__main__":
    main()
