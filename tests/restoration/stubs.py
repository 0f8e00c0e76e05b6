"""Models of a few lines that stand in for a trained one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from restorevar.models import RestoreVAR, RestoreVARConfig
from restorevar.models.config import RefinerConfig, TokenizerConfig, TransformerConfig


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


def tiny_model(refiner="attention", gate=None):
    """A real model of 32 px with random weights."""
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 2), latent_channels=4, vocabulary_size=16, stem_patch=2, norm_groups=4
    )
    config = RestoreVARConfig(
        scales=(1, 2, 4, 8),
        tokenizer=tokenizer,
        transformer=TransformerConfig(depth=1, width=16, heads=2, gain_init=1.0),
        refiner=RefinerConfig(kind=refiner, width=16, heads=2, mlp_width=16, depth=1),
        gate=gate,
    )
    return RestoreVAR(config).eval()
