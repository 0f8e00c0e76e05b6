"""Is bfloat16 safe for a trained model?

Teacher-forced on float32's own tokens at least 95 % of tokens must agree, and the restored photo's PSNR against the
clean photo may differ by 0.05 dB on average and 0.3 dB for any photo.

    python benchmarks/bfloat16.py MODEL PHOTOS [--kinds haze rain ...] [--count 20] [--output FILE.json]

MODEL is a model folder or a shipped name, PHOTOS a folder of clean photos that the model was not trained on. Each is
cut to the model's size, degraded with a seed of its own, and restored in both precisions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from restorevar import RestoreVAR
from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.sources import list_photos
from restorevar.errors import UserError
from restorevar.evaluation.metrics import ImageMetrics
from restorevar.restoration.photo import read_rgb

AGREEMENT, MEAN_DECIBEL, LARGEST_DECIBEL = 0.95, 0.05, 0.3


def center_cut(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a photo after shrinking its shorter side to fit."""
    factor = max(height / photo.shape[0], width / photo.shape[1])
    size = (max(width, round(photo.shape[1] * factor)), max(height, round(photo.shape[0] * factor)))
    photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def to_tensor(photo: np.ndarray) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def teacher_forced_tokens(model: RestoreVAR, degraded: Tensor, tokens: Tensor) -> Tensor:
    """Most likely tokens (B, T) where every scale sees the given tokens of the coarser ones."""
    assert model.transformer is not None
    features = model.tokenizer.encode_features(model.prepared(degraded))
    teacher_input = model.tokenizer.quantizer.teacher_input(tokens, model.scales)
    return model.transformer(teacher_input, features)[0].argmax(-1)


def main() -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["haze", "rain", "snow", "low_light", "motion_blur"])
    parser.add_argument("--count", type=int, default=20, help="photos, each with one kind after the other")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    try:
        return judge(arguments.model, arguments.photos, arguments.kinds, arguments.count, arguments.output)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def judge(model: str, photos: Path, kinds: list[str], count: int, output: Path | None) -> int:
    """Measures and judges.

    Args:
        model: Model folder or shipped name.
        photos: Folder of clean photos.
        kinds: Kinds of degradation, in turn.
        count: Photos.
        output: JSON file to write.

    Returns:
        0 if bfloat16 is safe, 1 if not.

    Raises:
        UserError: If a photo, a kind or the model cannot be had.
    """
    single = RestoreVAR.from_pretrained(model)
    half = RestoreVAR.from_pretrained(model).set_precision(torch.bfloat16)
    files = list_photos(photos)[:count]
    psnr = ImageMetrics(("psnr",))
    rows = []
    for seed, path in enumerate(files):
        kind = kinds[seed % len(kinds)]
        clean = center_cut(read_rgb(path), *single.image_size)
        degraded = to_tensor(degrade(clean, kind, 0.6, seed)[0])
        target = (to_tensor(clean) + 1) / 2
        expected, found = single.generate(degraded), half.generate(degraded)
        forced = [teacher_forced_tokens(network, degraded, expected.tokens) for network in (single, half)]
        row = {
            "photo": path.name,
            "kind": kind,
            "agreement": (forced[0] == forced[1]).float().mean().item(),
            "rolled_out_agreement": (expected.tokens == found.tokens).float().mean().item(),
            "psnr_float32": psnr(expected.image, target)["psnr"].item(),
            "psnr_bfloat16": psnr(found.image, target)["psnr"].item(),
        }
        rows.append(row)
        print(f"{row['photo']:32} {kind:12} tokens {row['agreement']:.4f}  "
              f"PSNR {row['psnr_float32']:.2f} -> {row['psnr_bfloat16']:.2f} dB", flush=True)  # fmt: skip
    differences = [row["psnr_bfloat16"] - row["psnr_float32"] for row in rows]
    summary = {
        "agreement": float(np.mean([row["agreement"] for row in rows])),
        "mean_difference": float(np.mean(differences)),
        "largest_difference": float(np.max(np.abs(differences))),
    }
    safe = (
        summary["agreement"] >= AGREEMENT
        and abs(summary["mean_difference"]) <= MEAN_DECIBEL
        and summary["largest_difference"] <= LARGEST_DECIBEL
    )
    print(f"{summary}: {'safe' if safe else 'NOT safe'}")
    if output:
        output.write_text(json.dumps({"summary": summary, "safe": safe, "photos": rows}, indent=2) + "\n")
    return 0 if safe else 1


if __name__ == "__main__":
    raise SystemExit(main())
