"""Largest differences between our metrics and scikit-image's and pyiqa's on real pairs.

    python benchmarks/metric_agreement.py DEGRADED_FOLDER CLEAN_FOLDER [--limit 20]

Files pair by name. MS-SSIM is compared only where pyiqa is installed (extra `metrics`).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restorevar.datamodules.sources import list_photos
from restorevar.errors import UserError
from restorevar.evaluation.metrics import ImageMetrics
from restorevar.restoration.photo import read_rgb


def main() -> None:
    """Compares and prints one line a metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("degraded", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    options = parser.parse_args()
    try:
        import pyiqa

        ms_ssim = pyiqa.create_metric("ms_ssim", test_y_channel=False, as_loss=False)
    except ImportError:
        ms_ssim = None

    metrics, worst = ImageMetrics(("psnr", "ssim", "ms_ssim")), {"psnr": 0.0, "ssim": 0.0, "ms_ssim": 0.0}
    try:
        files = list_photos(options.degraded)[: options.limit]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    for path in files:
        degraded, clean = read_rgb(path), read_rgb(options.clean / path.relative_to(options.degraded))
        tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in (degraded, clean)]
        found = {name: float(value) for name, value in metrics(*tensors).items()}
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = {
            "psnr": peak_signal_noise_ratio(clean / 255, degraded / 255, data_range=1),
            "ssim": structural_similarity(clean / 255, degraded / 255, data_range=1, channel_axis=2, **settings),
        }
        if ms_ssim is not None:
            expected["ms_ssim"] = float(ms_ssim(*tensors))
        for name, value in expected.items():
            worst[name] = max(worst[name], float(np.abs(found[name] - value)))
    references = {"psnr": "scikit-image", "ssim": "scikit-image", "ms_ssim": "pyiqa"}
    for name, reference in references.items():
        text = (
            "not compared (pyiqa is not installed)" if name == "ms_ssim" and ms_ssim is None else f"{worst[name]:.1e}"
        )
        print(f"{name:8s} {len(files)} pairs, largest difference from {reference}: {text}")


if __name__ == "__main__":
    main()
