"""A model as programs that run without this package: four parts with a static cache, or one whole.

Shapes: B batch, T tokens of all scales, N = s_K^2 places of the finest grid, n tokens of one scale, C width,
Z latent channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restorevar.errors import UserError
from restorevar.models.quantizer import area_resize, bicubic_resize
from restorevar.models.restorevar import RestoreVAR
from restorevar.models.transformer import ScaleTransformer

__all__ = ["Decode", "Encode", "Parts", "Refine", "ScaleStep", "Whole", "build_parts", "scale_tables"]


class Encode(nn.Module):
    """Photo to what all scales need.

    Args:
        model: The model.
    """

    def __init__(self, model: RestoreVAR, transformer: ScaleTransformer) -> None:
        super().__init__()
        self.model, self.transformer = model, transformer

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> features, start (B, C), condition (depth, 2, B, heads, N, D), local (B, Z, N)."""
        features = self.model.tokenizer.encode_features(self.model.prepared(photo))
        state = self.transformer.start(features)
        cross = torch.stack([torch.stack([key.to(value.dtype), value]) for key, value in state.cross])
        return features, state.condition.start, cross, state.condition.local.flatten(2)


class ScaleStep(nn.Module):
    """One scale, the same program for every scale: its shapes are static but for the number of tokens.

    Resizing is linear, so that its matrices (:func:`scale_tables`) are inputs; the mask over the static cache follows
    from the number of tokens stored so far.

    Args:
        model: The model.
    """

    def __init__(self, model: RestoreVAR, transformer: ScaleTransformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.quantizer = model.tokenizer.quantizer
        self.size = model.scales.finest
        kernels = [conv for conv in self.quantizer.phi if isinstance(conv, nn.Conv2d)]
        self.register_buffer("phi_weight", torch.stack([kernel.weight.detach() for kernel in kernels]).contiguous())
        biases = [kernel.bias.detach() for kernel in kernels if kernel.bias is not None]
        self.register_buffer("phi_bias", torch.stack(biases))
        self.phi_weight: Tensor
        self.phi_bias: Tensor

    def forward(
        self,
        running: Tensor,
        cache: Tensor,
        start: Tensor,
        cross: Tensor,
        local: Tensor,
        places: Tensor,
        scale: Tensor,
        phi: Tensor,
        down: Tensor,
        up: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs one scale.

        Args:
            running: (B, Z, N) float32 running sum; zeros at the first scale.
            cache: (depth, 2, B, heads, T, D) keys and values; anything finite at the first scale.
            start: (B, C) from :class:`Encode`.
            cross: (depth, 2, B, heads, N, D) from :class:`Encode`.
            local: (B, Z, N) from :class:`Encode`.
            places: (n,) int64 indices of the scale's tokens in the sequence.
            scale: () int64 index of the scale.
            phi: () int64 index of its residual convolution.
            down: (n, N) float32 area-downsampling to the scale.
            up: (N, n) float32 bicubic upsampling from it.

        Returns:
            Tokens (B, n), the last block's outputs (B, n, C), the new running sum, and the new cache.
        """
        transformer, quantizer = self.transformer, self.quantizer
        dtype = transformer.word_embed.weight.dtype
        first = (transformer.class_embed.weight[-1] + start)[:, None]
        embedded = transformer.word_embed((running @ down.T).transpose(1, 2).to(dtype))
        x = torch.where(scale == 0, first, embedded)
        x = x + transformer.level_embed(scale)
        if transformer.local_embed is not None:
            x = x + transformer.local_embed((local.float() @ down.T).transpose(1, 2).to(dtype))
        table = transformer.rotary.index_select(1, places)
        stored = torch.arange(cache.shape[4], device=cache.device) <= places[-1]
        layers = []
        for index, block in enumerate(transformer.block_sequence):
            query, key, value = block.attention.project(F.layer_norm(x, (block.width,), eps=1e-6), table)
            query, key = query.to(cache.dtype), key.to(cache.dtype)
            keys = cache[index, 0].index_copy(2, places, key)
            values = cache[index, 1].index_copy(2, places, value)
            layers.append(torch.stack([keys, values]))
            mask = stored[None, None, None, :].expand(1, 1, x.shape[1], -1)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
            x = x + block.attention.merge(attended)
            x = x + block.mlp(F.layer_norm(x, (block.width,), eps=1e-6))
            x = x + block.cross(x, table, cross[index, 0], cross[index, 1])
        logits = transformer.logits(x)
        tokens = logits.argmax(-1)
        entries = quantizer.codebook(tokens).float()
        if transformer.config.mean_scales:
            is_mean = scale < transformer.config.mean_scales
            means = quantizer.mean_entries(logits)
            tokens = torch.where(is_mean, quantizer.nearest(means.flatten(0, 1)).view_as(tokens), tokens)
            entries = torch.where(is_mean, means, entries)
        h = (entries.transpose(1, 2) @ up.T).unflatten(2, self.size)
        weight = self.phi_weight.index_select(0, phi[None])[0]
        bias = self.phi_bias.index_select(0, phi[None])[0]
        added = quantizer.phi_identity * h + quantizer.phi_convolution * F.conv2d(h, weight, bias, padding=1)
        return tokens, x, running + added.flatten(2), torch.stack(layers)


class Refine(nn.Module):
    """Running sum and hidden tokens to the continuous latent.

    Args:
        model: The model.
    """

    def __init__(self, model: RestoreVAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, running: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
        """(B, Z, N), (B, T, C), (B, Z, h, w) -> (B, Z, s_K, s_K)."""
        latent = running.unflatten(2, self.model.scales.finest)
        refiner = self.model.refiner
        return latent if refiner is None else refiner(latent, hidden, features)


class Decode(nn.Module):
    """Latent to photo; the encoder's features are made again where the model has a detail path or a gate.

    Args:
        model: The model.
        fidelity: Weight of the detail path.
    """

    def __init__(self, model: RestoreVAR, fidelity: float) -> None:
        super().__init__()
        self.model, self.fidelity = model, fidelity

    def forward(self, latent: Tensor, photo: Tensor) -> Tensor:
        """(B, Z, s_K, s_K) and the degraded (B, 3, H, W) in [-1, 1] -> restored (B, 3, H, W) float32 in [0, 1]."""
        pyramid = self.model.tokenizer.encoder.pyramid(self.model.prepared(photo)) if self.fidelity else []
        return (self.model.decode(latent, pyramid, self.fidelity).float() + 1) / 2


class Whole(nn.Module):
    """Degraded photo to restored photo, all scales unrolled.

    Args:
        model: The model.
        fidelity: Weight of the detail path.
    """

    def __init__(self, model: RestoreVAR, fidelity: float) -> None:
        super().__init__()
        self.model, self.fidelity = model, fidelity

    def forward(self, photo: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, H, W) float32 in [0, 1]."""
        return self.model.generate(photo, fidelity=self.fidelity).image


class Parts(NamedTuple):
    """The four programs that ``restorevar export --format parts`` writes.

    Attributes:
        encoder: See :class:`Encode`.
        step: See :class:`ScaleStep`.
        refiner: See :class:`Refine`.
        decoder: See :class:`Decode`.
    """

    encoder: Encode
    step: ScaleStep
    refiner: Refine
    decoder: Decode


def build_parts(model: RestoreVAR, fidelity: float) -> Parts:
    """The parts of a model.

    Raises:
        UserError: If it holds a tokenizer only.
    """
    if model.transformer is None:
        raise UserError("the model holds a tokenizer only; expected one that went through stage 2 as well")
    transformer = model.transformer
    return Parts(Encode(model, transformer), ScaleStep(model, transformer), Refine(model), Decode(model, fidelity))


def scale_tables(model: RestoreVAR) -> dict[str, Tensor]:
    """What the step program takes beside its state: for scale k ``places_k``, ``phi_k``, ``down_k`` and ``up_k``."""
    scales = model.scales
    rows, columns = scales.finest
    count = rows * columns
    phi = scales.phi_index(len(model.tokenizer.quantizer.phi))
    fine = torch.eye(count).unflatten(1, scales.finest)[None]  # one channel a place
    tables = {}
    for scale, size in enumerate(scales):
        coarse = torch.eye(scales.lengths[scale]).unflatten(1, size)[None]
        span = scales.span(scale)
        tables[f"places_{scale}"] = torch.arange(span.start, span.stop)
        tables[f"phi_{scale}"] = torch.tensor(phi[scale])
        tables[f"down_{scale}"] = area_resize(fine, size)[0].flatten(1).T.contiguous()
        tables[f"up_{scale}"] = bicubic_resize(coarse, scales.finest)[0].flatten(1).T.contiguous()
    return tables
