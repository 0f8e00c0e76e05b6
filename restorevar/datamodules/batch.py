"""What a data loader hands to a LightningModule."""

from typing import NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorevar.datamodules.kinds import CLEAN_KIND, PAIRED_KINDS

__all__ = ["CLEAN_KIND", "PAIRED_KINDS", "RestorationBatch", "RestorationSample", "collate", "to_tensor"]


class RestorationSample(TypedDict):
    """One sample; images are (3, H, W) float32 in [-1, 1]."""

    degraded: Tensor
    clean: NotRequired[Tensor]
    clean_key: NotRequired[str]
    kind: str
    dataset: str
    path: str
    severity: NotRequired[float]
    parameters: NotRequired[str]


class RestorationBatch(TypedDict):
    """B samples; images are (B, 3, H, W) float32 in [-1, 1].

    Attributes:
        degraded: The images to restore.
        clean: The images they should become; absent where there is no ground truth, and when predicting.
        clean_key: Hexadecimal digest of each clean image's pixels; training with crops that are the same in every epoch
            only.
        kind: Kind of degradation of each sample; the last part of its name for one of the user's own.
        dataset: Name of the set or folder that each sample comes from.
        path: File of the degraded image, or of the clean image if it was degraded on the fly.
        severity: Fixed sets only: severity in [0, 1], NaN where it is not known (real pairs).
        parameters: Fixed sets only: JSON of the degradation's parameters, `{}` for real pairs.
    """

    degraded: Tensor
    clean: NotRequired[Tensor]
    clean_key: NotRequired[list[str]]
    kind: list[str]
    dataset: list[str]
    path: list[str]
    severity: NotRequired[list[float]]
    parameters: NotRequired[list[str]]


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().mul_(2 / 255).sub_(1)


def collate(samples: list[RestorationSample]) -> RestorationBatch:
    """Stacks images; everything else becomes a list."""
    batch: RestorationBatch = {
        "degraded": torch.stack([sample["degraded"] for sample in samples]),
        "kind": [sample["kind"] for sample in samples],
        "dataset": [sample["dataset"] for sample in samples],
        "path": [sample["path"] for sample in samples],
    }
    if "clean" in samples[0]:
        batch["clean"] = torch.stack([sample["clean"] for sample in samples])
    if "clean_key" in samples[0]:
        batch["clean_key"] = [sample["clean_key"] for sample in samples]
    if "parameters" in samples[0]:
        batch["severity"] = [sample["severity"] for sample in samples]
        batch["parameters"] = [sample["parameters"] for sample in samples]
    return batch
