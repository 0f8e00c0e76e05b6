"""A model with its latent exchanged: how much of a restoration is the model's, and not the photo let through."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorevar.models import RestoreVAR
from restorevar.models.gate import PhotoGate
from restorevar.restoration.restorer import Restorer

__all__ = ["LatentExchange", "Parts", "Variant", "at_size_of", "restore_with_latent_of"]

Pixels = NDArray[np.uint8]

TILES_KEPT = 64


def restore_with_latent_of(model: RestoreVAR, degraded: Pixels, another: Pixels) -> Pixels:
    """Restores a photo with the latent of another one, tile by tile.

    Encoder features, tokens and refined latent come from the other photo; the detail path, if the model has one, sees
    the right one. Gate and levels of the tiles start from this photo, too; without detail path and gate the result
    is the other photo's restoration but for those levels.

    Args:
        model: A whole model.
        degraded: (H, W, 3).
        another: Another degraded photo; resized where its size differs.

    Returns:
        (H, W, 3).
    """
    return LatentExchange(Parts(model)).restore(degraded, another)


class LatentExchange:
    """Restores photos with the latents of others, as :func:`restore_with_latent_of` says, for one model.

    Both photos have as many tiles, in the same order. Where memory runs out a photo is begun again, and so are the
    latents.

    Args:
        parts: The model.
    """

    def __init__(self, parts: Parts) -> None:
        self._kept: list[Tensor] = []
        self._left: list[Tensor] = []
        listening, giving = Variant(parts, self._keep), Variant(parts, lambda own: self._left.pop(0))
        self._listen = Restorer(listening, fidelity=0.0, note=lambda line: self._kept.clear())
        self._restore = Restorer(giving, note=lambda line: self._refill())

    def _keep(self, latent: Tensor) -> Tensor:
        self._kept.append(latent)
        return latent

    def _refill(self) -> None:
        self._left[:] = self._kept

    def restore(self, degraded: Pixels, another: Pixels) -> Pixels:
        """See :func:`restore_with_latent_of`."""
        self._kept.clear()
        self._listen.restore(at_size_of(degraded, another))
        self._refill()
        restored = self._restore.restore(degraded)
        assert not self._left  # as many tiles in both photos
        return restored


def at_size_of(photo: Pixels, another: Pixels) -> Pixels:
    """``another`` (h, w, 3), resized to the height and width of ``photo``."""
    if another.shape == photo.shape:
        return another
    return np.asarray(cv2.resize(another, photo.shape[1::-1], interpolation=cv2.INTER_AREA), np.uint8)


class Parts:
    """The model up to the latent, tile by tile. Results are kept for a while: all rows need them.

    Args:
        model: A whole model.
    """

    def __init__(self, model: RestoreVAR) -> None:
        self.model = model
        self._found: dict[bytes, tuple[Tensor, list[Tensor]]] = {}

    def __call__(self, tile: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Refined latent (1, Z, h, w) and encoder features of a degraded tile (1, 3, H, W) in [-1, 1]."""
        key = hashlib.sha256(tile.cpu().contiguous().numpy().data).digest()
        if key not in self._found:
            features, pyramid = self.model.tokenizer.encoder.features(self.model.prepared(tile))
            if len(self._found) == TILES_KEPT:
                del self._found[next(iter(self._found))]
            self._found[key] = self.model.refine(self.model.roll_out(features), features), pyramid
        return self._found[key]


@dataclass
class Variant:
    """A model whose latent is exchanged before it is decoded, in the shape that `Restorer` wants.

    Attributes:
        parts: The model.
        exchange: Own latent to the one to decode, both (1, Z, h, w).
    """

    parts: Parts
    exchange: Callable[[Tensor], Tensor] = lambda latent: latent

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return self.parts.model.image_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parts.model.device

    @property
    def gate(self) -> PhotoGate | None:
        """The model's gate, if it has one."""
        return self.parts.model.gate

    def generate(self, degraded: Tensor, fidelity: float | None = None, gated: bool = True) -> Any:
        """(B, 3, H, W) in [-1, 1] to an object with `image`, the same in [0, 1]; the rest as in the model."""
        weight, images = self.parts.model.resolve_fidelity(fidelity), []
        decode = self.parts.model.decode if gated else self.parts.model.decode_ungated
        for tile in degraded.split(1):
            latent, pyramid = self.parts(tile)
            images.append(decode(self.exchange(latent), pyramid, weight))
        return SimpleNamespace(image=(torch.cat(images).float() + 1) / 2)
