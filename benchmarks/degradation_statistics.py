"""Are our degradations as strong as a public data set's? Input PSNR, brightness shift and contrast loss side by side.

    python benchmarks/degradation_statistics.py FOLDER KIND [--seeds 20]

FOLDER holds ``degraded/`` and ``clean/`` with the same names. Our numbers come from the same clean photos, severities
drawn evenly from 0 to 1. For each measure: the set's range and median, our 2nd and 98th percentile and median, the
share of the set's values between our percentiles, and whether our median lies inside the set's range.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from restorevar.datamodules.degradations import KINDS, degrade

MEASURES = ("input PSNR (dB)", "brightness shift", "contrast loss")


def measure(degraded: np.ndarray, clean: np.ndarray) -> tuple[float, float, float]:
    """PSNR on RGB, difference of the means in [0, 1], and 1 - ratio of the standard deviations of the luminance."""
    error = np.square(degraded.astype(np.float64) - clean).mean()
    psnr = 10 * np.log10(255**2 / max(error, 1e-2))
    shift = (degraded.mean() - clean.mean()) / 255
    spread = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).std() for image in (degraded, clean)]
    return psnr, shift, 1 - spread[0] / max(spread[1], 1e-6)


def read(path: Path) -> np.ndarray:
    """uint8 RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SystemExit(f"error: cannot read {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=20, help="degraded copies of each clean photo")
    arguments = parser.parse_args()
    for part in ("degraded", "clean"):
        if not (arguments.folder / part).is_dir():
            parser.exit(2, f"error: {arguments.folder / part}: no such folder; expected degraded/ and clean/\n")
    names = sorted(path.name for path in (arguments.folder / "degraded").iterdir())
    random = np.random.Generator(np.random.PCG64(0))
    theirs, ours, done = [], [], set()
    for name in names:
        clean = read(arguments.folder / "clean" / name)
        theirs.append(measure(read(arguments.folder / "degraded" / name), clean))
        # several degraded photos may share one clean photo
        if clean.tobytes() in done:
            continue
        done.add(clean.tobytes())
        for _ in range(arguments.seeds):
            made, _ = degrade(clean, arguments.kind, random.random(), int(random.integers(2**31)))
            ours.append(measure(made, clean))
    theirs, ours = np.array(theirs), np.array(ours)
    print(f"{arguments.folder.name}: {len(theirs)} pairs; {arguments.kind}: {len(ours)} made\n")
    print("| measure | theirs: range (median) | ours: 2nd to 98th percentile (median) | theirs inside | median fits |")
    print("|---|---|---|---|---|")
    for index, name in enumerate(MEASURES):
        low, high = np.percentile(ours[:, index], (2, 98))
        values, median = theirs[:, index], float(np.median(ours[:, index]))
        inside = ((values >= low) & (values <= high)).mean()
        fits = "yes" if values.min() <= median <= values.max() else "no"
        digits = 1 if index == 0 else 3
        print(
            f"| {name} | {values.min():.{digits}f} to {values.max():.{digits}f} ({np.median(values):.{digits}f}) "
            f"| {low:.{digits}f} to {high:.{digits}f} ({median:.{digits}f}) | {100 * inside:.0f} % | {fits} |"
        )


if __name__ == "__main__":
    main()
