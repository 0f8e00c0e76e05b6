"""Multi-scale VQVAE tokenizer: encoder, quantizer, decoder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.models.config import TokenizerConfig
from restorevar.models.layers import AttentionBlock, Downsample, GroupNormSiLU, ResidualBlock, Upsample
from restorevar.models.quantizer import MultiScaleQuantizer

__all__ = ["Decoder", "Encoder", "Tokenizer"]


def _level(channels: list[int], groups: int, attention: bool) -> nn.Sequential:
    """Residual blocks from ``channels[0]`` on, each followed by attention where asked for."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(channels):
        layers.append(ResidualBlock(in_channels, out_channels, groups))
        if attention:
            layers.append(AttentionBlock(out_channels, groups))
    return nn.Sequential(*layers)


def _middle(channels: int, groups: int, attention: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ResidualBlock(channels, channels, groups)]
    if attention:
        layers.append(AttentionBlock(channels, groups))
    layers.append(ResidualBlock(channels, channels, groups))
    return nn.Sequential(*layers)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


class Encoder(nn.Module):
    """Photo to latent features.

    Args:
        config: Sizes of the tokenizer.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths, groups = config.level_channels, config.norm_groups
        self.stem_patch = config.stem_patch
        self.conv_in = nn.Conv2d(3 * config.stem_patch**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        before = widths[0]
        for level, channels in enumerate(widths):
            last = level == len(widths) - 1
            sizes = [before] + [channels] * config.encoder_blocks
            self.levels.append(_level(sizes, groups, config.attention and last))
            if not last:
                self.downsamples.append(Downsample(channels))
            before = channels
        self.middle = _middle(before, groups, config.attention)
        self.norm_out = GroupNormSiLU(groups, before)
        self.conv_out = nn.Conv2d(before, config.latent_channels, 3, padding=1)
        block = config.downsampling
        self.linear = nn.Conv2d(3, config.latent_channels, block, stride=block) if config.linear_path else None

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The stem's pixel blocks (B, 3 p^2, H / p, W / p) for a stem of patch p, then the output of every level.

        Finest first; level i gives (B, C_i, H / (p 2^i), W / (p 2^i)).
        """
        blocks = F.pixel_unshuffle(image, self.stem_patch) if self.stem_patch > 1 else image
        # the blocks stay as exact as they came: what compares photos needs more than bfloat16
        x, features = self.conv_in(blocks.to(self.conv_in.weight.dtype)), [blocks]
        for level, residual in enumerate(self.levels):
            x = residual(x)
            features.append(x)
            if level < len(self.downsamples):
                x = self.downsamples[level](x)
        return features

    def features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent features (B, Z, H / f, W / f) of a photo (B, 3, H, W) in [-1, 1], and its :meth:`pyramid`."""
        pyramid = self.pyramid(image)
        x = self.conv_out(self.norm_out(self.middle(pyramid[-1])))
        if self.linear is not None:
            # in float32: a photo's brightness must survive bfloat16
            with torch.autocast(image.device.type, enabled=False):
                weight, bias = self.linear.weight.float(), _float(self.linear.bias)
                x = x + F.conv2d(image.float(), weight, bias, stride=self.linear.stride)
        return x, pyramid

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, Z, H / f, W / f)."""
        return self.features(image)[0]


class Decoder(nn.Module):
    """Latent to photo. Levels are kept finest first, as in the encoder.

    Args:
        config: Sizes of the tokenizer.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths, groups = config.level_channels, config.norm_groups
        self.stem_patch = config.stem_patch
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], groups, config.attention)
        levels: list[nn.Module] = []
        upsamples: list[nn.Module] = []
        before = widths[-1]
        for level in reversed(range(len(widths))):
            coarsest = level == len(widths) - 1
            sizes = [before] + [widths[level]] * config.decoder_blocks
            levels.append(_level(sizes, groups, config.attention and coarsest))
            if level > 0:
                upsamples.append(Upsample(widths[level]))
            before = widths[level]
        self.levels = nn.ModuleList(reversed(levels))
        self.upsamples = nn.ModuleList(reversed(upsamples))  # upsamples[i] leads from level i + 1 to level i
        self.norm_out = GroupNormSiLU(groups, before)
        self.conv_out = nn.Conv2d(before, 3 * config.stem_patch**2, 3, padding=1)
        block = config.downsampling
        self.linear = nn.ConvTranspose2d(config.latent_channels, 3, block, stride=block) if config.linear_path else None

    def forward(self, latent: Tensor, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Decodes a latent.

        Args:
            latent: (B, Z, h, w), after ``post_quant_conv``.
            fuse: Called with (level, features) before each level's blocks, coarsest first; returns the features to
                go on with. This is where the detail path enters.

        Returns:
            (B, 3, h f, w f), not clamped.
        """
        x = self.middle(self.conv_in(latent))
        for level in reversed(range(len(self.levels))):
            if fuse is not None:
                x = fuse(level, x)
            x = self.levels[level](x)
            if level > 0:
                x = self.upsamples[level - 1](x)
        x = self.conv_out(self.norm_out(x))
        x = F.pixel_shuffle(x, self.stem_patch) if self.stem_patch > 1 else x
        if self.linear is not None:
            with torch.autocast(latent.device.type, enabled=False):
                weight, bias = self.linear.weight.float(), _float(self.linear.bias)
                x = x + F.conv_transpose2d(latent.float(), weight, bias, stride=self.linear.stride)
        return x


class Tokenizer(nn.Module):
    """Multi-scale VQVAE (VAR's tokenizer; any size).

    Args:
        config: Sizes.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.quantizer = MultiScaleQuantizer(config)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.decoder = Decoder(config)

    def encode_features(self, image: Tensor) -> Tensor:
        """Output of the encoder's last convolution: the condition latent of a degraded photo.

        Args:
            image: (B, 3, H, W) in [-1, 1], H and W multiples of f.

        Returns:
            (B, Z, H / f, W / f).
        """
        return self.encoder(image)

    def to_latent(self, features: Tensor) -> Tensor:
        """``quant_conv`` in float32: encoder features to the continuous latent, both (B, Z, h, w)."""
        with torch.autocast(features.device.type, enabled=False):
            # weights may have been cast to bfloat16: the codebook's neighbourhood is decided in float32
            weight, bias = self.quant_conv.weight, self.quant_conv.bias
            assert bias is not None
            return F.conv2d(features.float(), weight.float(), bias.float(), padding=1)

    def encode(self, image: Tensor) -> Tensor:
        """Continuous latent (B, Z, H / f, W / f) of a photo (B, 3, H, W) in [-1, 1]."""
        return self.to_latent(self.encode_features(image))

    def decode(self, latent: Tensor, clamp: bool = True, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Photo of a continuous or discrete latent.

        Args:
            latent: (B, Z, h, w) on the side of ``quant_conv``'s output.
            clamp: Clamp to [-1, 1]; training losses want False.
            fuse: See :meth:`Decoder.forward`.

        Returns:
            (B, 3, h f, w f) in [-1, 1].
        """
        image = self.decoder(self.post_quant_conv(latent.to(self.post_quant_conv.weight.dtype)), fuse)
        return image.clamp(-1, 1) if clamp else image
