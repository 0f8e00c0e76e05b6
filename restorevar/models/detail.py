"""Detail path: what the latent cannot hold, taken from the degraded photo's own features (ours, not the paper's)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import DetailConfig, TokenizerConfig
from restorevar.models.layers import ResidualBlock

__all__ = ["DetailPath", "Fuser"]


class Fusion(nn.Module):
    """F(h, e): what to add to features h of the decoder, given the encoder's features e of the degraded photo.

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
        self.conv_out = nn.Conv2d(width, decoder_channels, 3, padding=1)
        self.gate = nn.Conv2d(width, decoder_channels, 1)
        for parameter in (*self.conv_out.parameters(), *self.gate.parameters()):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, decoded: Tensor, encoded: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """What to add, and what the next finer fusion goes on from.

        Args:
            decoded: (B, decoder_channels, h, w).
            encoded: (B, encoder_channels, h, w).
            coarser: (B, width, h / 2 or h, w / 2 or w) from the fusion before; None at the coarsest.

        Returns:
            (B, decoder_channels, h, w) and (B, width, h, w).
        """
        dtype, size = self.conv_in.weight.dtype, root_mean_square(decoded)
        pair = [(decoded / size).to(dtype), (encoded / root_mean_square(encoded)).to(dtype)]
        x = self.conv_in(torch.cat(pair, dim=1))
        if coarser is not None:
            x = x + F.interpolate(coarser, size=x.shape[2:], mode="nearest")
        x = self.blocks(x)
        active = F.silu(x)
        return self.conv_out(active) * self.gate(active).sigmoid() * size, x


def root_mean_square(x: Tensor) -> Tensor:
    """Size of the features of each sample, (B, C, h, w) -> (B, 1, 1, 1), without gradient; never 0."""
    size = x.detach().float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return size.clamp(min=1e-3).to(x.dtype)


class DetailPath(nn.Module):
    """Fuses encoder features of the degraded photo into the decoder, h + w F(h, e), from coarse to fine.

    Into the features before each of the decoder's levels, and into the decoded photo in pixel blocks of the stem. The
    last one matters: a decoder that ends in a norm gives out no more than it was trained to, whatever is added inside.
    Each fusion goes on from the features of the one before, so that the finest sees as far as the coarsest.

    Args:
        config: Sizes of the path. With ``finest_level`` above 0 the decoded photo is left alone.
        tokenizer: Sizes of the tokenizer that it belongs to.
    """

    def __init__(self, config: DetailConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.stem_patch = tokenizer.stem_patch
        widths = tokenizer.level_channels
        # before level i the decoder still has the channels of level i + 1
        decoder = [*widths[1:], widths[-1]]
        self.levels = nn.ModuleDict(
            {
                str(level): Fusion(decoder[level], widths[level], config.width, config.blocks)
                for level in range(config.finest_level, len(widths))
            }
        )
        blocks = 3 * self.stem_patch**2
        has_photo = config.finest_level == 0
        self.photo = Fusion(blocks, widths[0], config.width, config.blocks) if has_photo else None

    def fuser(self, pyramid: list[Tensor], fidelity: float | Tensor) -> Fuser:
        """What :meth:`Tokenizer.decode` calls at each level and :meth:`RestoreVAR.decode` at its end.

        Args:
            pyramid: Encoder features of the degraded photo, from :meth:`Encoder.pyramid`.
            fidelity: Weight w in [0, 1], a number or one a sample (B,).
        """
        return Fuser(self, pyramid, fidelity)


class Fuser:
    """One pass through the detail path, coarse to fine.

    Args:
        path: The path.
        pyramid: See :meth:`DetailPath.fuser`.
        fidelity: See :meth:`DetailPath.fuser`.
    """

    def __init__(self, path: DetailPath, pyramid: list[Tensor], fidelity: float | Tensor) -> None:
        self.path = path
        self.pyramid = pyramid
        self.weight = fidelity.view(-1, 1, 1, 1) if isinstance(fidelity, Tensor) else fidelity
        self._coarser: Tensor | None = None

    def __call__(self, level: int, decoded: Tensor) -> Tensor:
        """Features (B, C, h, w) before a level of the decoder, fused."""
        if str(level) not in self.path.levels:
            return decoded
        return self._fused(cast(Fusion, self.path.levels[str(level)]), decoded, self.pyramid[level])

    def photo(self, decoded: Tensor) -> Tensor:
        """The decoded photo (B, 3, H, W), fused."""
        if self.path.photo is None:
            return decoded
        patch = self.path.stem_patch
        blocks = F.pixel_unshuffle(decoded, patch) if patch > 1 else decoded
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        fused = self._fused(self.path.photo, blocks, self.pyramid[0])
        return F.pixel_shuffle(fused, patch) if patch > 1 else fused

    def _fused(self, fusion: Fusion, decoded: Tensor, encoded: Tensor) -> Tensor:
        added, self._coarser = fusion(decoded, encoded, self._coarser)
        weight = self.weight.to(decoded.dtype) if isinstance(self.weight, Tensor) else self.weight
        return decoded + weight * added.to(decoded.dtype)
