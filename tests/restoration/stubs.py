"""Models of a few lines that stand in for a trained one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor


@dataclass
class StubModel:
    """Applies a function of (B, 3, h, w) in [0, 1] tile by tile and remembers what it was asked for."""

    function: Callable[[Tensor], Tensor] = lambda tiles: tiles
    image_size: tuple[int, int] = (64, 64)
    calls: list[int] = field(default_factory=list)
    fidelities: list[float | None] = field(default_factory=list)

    def generate(self, degraded: Tensor, fidelity: float | None = None) -> SimpleNamespace:
        assert degraded.shape[1:] == (3, *self.image_size)
        assert degraded.dtype == torch.float32
        assert -1 <= float(degraded.min()) <= float(degraded.max()) <= 1
        self.calls.append(len(degraded))
        self.fidelities.append(fidelity)
        return SimpleNamespace(image=self.function((degraded + 1) / 2))


def minus_mean(tiles: Tensor) -> Tensor:
    """Every tile comes back around the same grey, whatever its brightness was."""
    return tiles - tiles.mean((1, 2, 3), keepdim=True) + 0.5


def random_gain(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Every tile is scaled by its own factor from 0.7 to 1.4."""
    generator = torch.Generator().manual_seed(seed)

    def scale(tiles: Tensor) -> Tensor:
        return tiles * (0.7 + 0.7 * torch.rand(len(tiles), 1, 1, 1, generator=generator))

    return scale
