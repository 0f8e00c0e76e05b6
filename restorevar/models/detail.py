"""Detail path: what the latent cannot hold, taken from the degraded photo's own features (ours, not the paper's)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import DetailConfig, TokenizerConfig
from restorevar.models.layers import ResidualBlock

__all__ = ["DetailPath"]


class Fusion(nn.Module):
    """F(h, e): what to add to the decoder's features h, given the encoder's features e of the degraded photo.

    The branch ends in a convolution that starts at 0 and a gate that starts nearly shut, so that an untrained path
    changes nothing. Both inputs are scaled to a root mean square of 1 and the output back to that of h: features of
    trained tokenizers differ tenfold in size, and the smaller ones would hardly be seen, the output hardly felt.

    Args:
        decoder_channels: Channels of h.
        encoder_channels: Channels of e.
        width: Channels inside.
        blocks: Residual blocks inside.
    """

    def __init__(self, decoder_channels: int, encoder_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        groups = max(width // 16, 1)
        self.conv_in = nn.Conv2d(decoder_channels + encoder_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, width, groups) for _ in range(blocks)))
        self.conv_out = nn.Conv2d(width, 2 * decoder_channels, 3, padding=1)
        weight, bias = self.conv_out.parameters()
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
        nn.init.constant_(bias[decoder_channels:], -1.0)

    def forward(self, decoded: Tensor, encoded: Tensor) -> Tensor:
        """(B, decoder_channels, h, w) and (B, encoder_channels, h, w) -> (B, decoder_channels, h, w)."""
        size = root_mean_square(decoded)
        x = self.conv_in(torch.cat([decoded / size, (encoded / root_mean_square(encoded)).to(decoded.dtype)], dim=1))
        added, gate = self.conv_out(F.silu(self.blocks(x))).chunk(2, dim=1)
        return added * gate.sigmoid() * size


def root_mean_square(x: Tensor) -> Tensor:
    """Size of the features of each sample, (B, C, h, w) -> (B, 1, 1, 1), without gradient; never 0."""
    size = x.detach().float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return size.clamp(min=1e-3).to(x.dtype)


class DetailPath(nn.Module):
    """Fuses encoder features of the degraded photo into the decoder, h + w F(h, e) at each level.

    Args:
        config: Sizes of the path.
        tokenizer: Sizes of the tokenizer that it belongs to.
    """

    def __init__(self, config: DetailConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths = tokenizer.level_channels
        # before level i the decoder still has the channels of level i + 1
        decoder = [*widths[1:], widths[-1]]
        self.levels = nn.ModuleDict(
            {
                str(level): Fusion(decoder[level], widths[level], config.width, config.blocks)
                for level in range(config.finest_level, len(widths))
            }
        )

    def fuser(self, pyramid: list[Tensor], fidelity: float | Tensor) -> Callable[[int, Tensor], Tensor]:
        """The function that :meth:`Tokenizer.decode` calls at each level.

        Args:
            pyramid: Encoder features of the degraded photo, from :meth:`Encoder.pyramid`.
            fidelity: Weight w in [0, 1], a number or one a sample (B,).
        """
        weight = fidelity.view(-1, 1, 1, 1) if isinstance(fidelity, Tensor) else fidelity

        def fuse(level: int, decoded: Tensor) -> Tensor:
            if str(level) not in self.levels:
                return decoded
            added = self.levels[str(level)](decoded, pyramid[level])
            return decoded + (weight.to(added.dtype) if isinstance(weight, Tensor) else weight) * added

        return fuse
