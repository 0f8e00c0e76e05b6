"""The model's formulas once more, written plainly (loops, dense masks, complex rotation): slow, to compare with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from restorevar.models import ScaleSchedule
from restorevar.models.quantizer import MultiScaleQuantizer
from restorevar.models.transformer import AttentionScale, Block, ScaleTransformer


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def area(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over windows from floor to ceil, (B, C, H, W) -> (B, C, *size)."""
    height, width = x.shape[2:]
    out = x.new_zeros(*x.shape[:2], *size)
    for row in range(size[0]):
        top, bottom = row * height // size[0], -(-(row + 1) * height // size[0])
        for column in range(size[1]):
            left, right = column * width // size[1], -(-(column + 1) * width // size[1])
            out[:, :, row, column] = x[:, :, top:bottom, left:right].mean((2, 3))
    return out


def _cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with a = -0.75, pixel centres at halves, edges repeated."""
    for axis, new in ((2, size[0]), (3, size[1])):
        old = x.shape[axis]
        matrix = x.new_zeros(new, old)
        for index in range(new):
            place = (index + 0.5) * old / new - 0.5
            for near in range(math.floor(place) - 1, math.floor(place) + 3):
                matrix[index, min(max(near, 0), old - 1)] += _cubic(place - near)
        x = torch.einsum("no,bcow->bcnw" if axis == 2 else "no,bcho->bchn", matrix, x)
    return x


def running_sums(quantizer: MultiScaleQuantizer, tokens: Tensor, scales: ScaleSchedule) -> list[Tensor]:
    """Running sum after each scale of tokens (B, T), by the definition."""
    table, sums = scales.phi_index(len(quantizer.phi)), []
    for scale, (height, width) in enumerate(scales):
        embedded = quantizer.codebook.weight[tokens[:, scales.span(scale)]]
        grown = bicubic(embedded.transpose(1, 2).unflatten(2, (height, width)), scales.finest)
        conv = quantizer.phi[table[scale]]
        added = quantizer.phi_identity * grown + quantizer.phi_convolution * conv(grown)
        sums.append(sums[-1] + added if sums else added)
    return sums


def excess(quantizer: MultiScaleQuantizer, latent: Tensor, tokens: Tensor, scales: ScaleSchedule) -> Tensor:
    """How much farther each token's code (B, T) is than the nearest one, given the coarser tokens: 0 if it is right."""
    sums, found = running_sums(quantizer, tokens, scales), []
    for scale, size in enumerate(scales):
        residual = latent - sums[scale - 1] if scale else latent
        vectors = area(residual, size).flatten(2).transpose(1, 2).unsqueeze(2)
        distances = (vectors - quantizer.codebook.weight).square().sum(-1)
        chosen = distances.gather(2, tokens[:, scales.span(scale), None])[..., 0]
        found.append(chosen - distances.amin(2))
    return torch.cat(found, 1)


def teacher_input(sums: list[Tensor], scales: ScaleSchedule) -> Tensor:
    """Running sum before each scale from the second, area-downsampled: (B, T - s_1^2, Z)."""
    parts = [area(running, scales[scale + 1]).flatten(2).transpose(1, 2) for scale, running in enumerate(sums[:-1])]
    return torch.cat(parts, 1) if parts else sums[0].new_zeros(len(sums[0]), 0, sums[0].shape[1])


def scale_causal_mask(scales: ScaleSchedule) -> Tensor:
    """(T, T) bool, True where the row's token may see the column's: its own scale and coarser ones."""
    level = [scale for scale, (height, width) in enumerate(scales) for _ in range(height * width)]
    return torch.tensor([[seen <= seeing for seen in level] for seeing in level])


def rotate(x: Tensor, places: Tensor, base: float) -> Tensor:
    """Turns adjacent channel pairs of (B, heads, T, D) as complex numbers; places (T, 2) are rows and columns."""
    width = x.shape[-1]
    frequencies = torch.tensor([base ** (-4 * i / width) for i in range(width // 4)], dtype=torch.float64)
    angles = torch.cat([places[:, :1] * frequencies, places[:, 1:] * frequencies], 1)
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def places(scales: ScaleSchedule) -> Tensor:
    """(T, 2) places of all tokens on the finest grid."""
    rows, columns = scales.finest
    return torch.tensor(
        [
            (row * rows / height, column * columns / width)
            for height, width in scales
            for row in range(height)
            for column in range(width)
        ],
        dtype=torch.float64,
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: AttentionScale, mask: Tensor | None) -> Tensor:
    """Cosine attention with learned scales, already rotated q and k (B, heads, n, D) -> (B, n, C)."""
    weight = scale.log_scale.clamp(max=math.log(100)).exp()
    scores = (query * weight) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def block(layer: Block, x: Tensor, condition: Tensor, scales: ScaleSchedule, base: float) -> Tensor:
    """One block over all tokens (B, T, C), with the dense mask."""

    def split(y: Tensor) -> Tensor:
        return y.unflatten(2, (layer.attention.heads, -1)).transpose(1, 2)

    where = places(scales)
    finest = where[-scales.lengths[-1] :]
    attention, cross, width = layer.attention, layer.cross, x.shape[-1]
    weight = attention.qkv.weight
    inputs = F.layer_norm(x, (width,), eps=1e-6)
    query = split(inputs @ weight[:width].T + attention.query_bias)
    key = split(inputs @ weight[width : 2 * width].T)
    value = split(inputs @ weight[2 * width :].T + attention.value_bias)
    query, key = (rotate(F.normalize(y, dim=-1), where, base) for y in (query, key))
    x = x + attention.out(_attend(query, key, value, attention.scale, scale_causal_mask(scales)))
    x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(F.layer_norm(x, (width,), eps=1e-6)), approximate="tanh"))
    normalized = F.layer_norm(condition, (width,), cross.norm_condition.weight, cross.norm_condition.bias, 1e-5)
    query = split(
        F.layer_norm(x, (width,), cross.norm_query.weight, cross.norm_query.bias, 1e-5) @ cross.query.weight.T
    )
    key = split(normalized @ cross.key_value.weight[:width].T)
    value = split(normalized @ cross.key_value.weight[width:].T)
    query, key = rotate(F.normalize(query, dim=-1), where, base), rotate(F.normalize(key, dim=-1), finest, base)
    return x + cross.gain * cross.out(_attend(query, key, value, cross.scale, None))


def transformer(model: ScaleTransformer, inputs: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and last block's outputs for a teacher input (B, T - s_1^2, Z) and degraded features (B, Z, h, w)."""
    scales, base = model.scales, model.config.rotary_base
    if tuple(features.shape[2:]) != scales.finest:
        features = bicubic(features, scales.finest)
    projected = model.condition_project(features.flatten(2).transpose(1, 2))
    condition = model.condition_embed(projected) + model.condition_level_embed
    start = model.class_embed.weight[-1] + model.global_gain * model.global_embed(projected.mean(1))
    first = start[:, None].expand(-1, scales.lengths[0], -1)
    x = torch.cat([first, model.word_embed(inputs)], 1)
    level = torch.tensor([scale for scale, length in enumerate(scales.lengths) for _ in range(length)])
    x = x + model.level_embed.weight[level]
    if model.local_embed is not None:
        grid = projected.transpose(1, 2).unflatten(2, scales.finest)
        x = x + model.local_embed(torch.cat([area(grid, size).flatten(2).transpose(1, 2) for size in scales], 1))
    for layer in model.block_sequence:
        x = block(layer, x, condition, scales, base)
    return model.head(F.layer_norm(x, (x.shape[-1],), eps=1e-6)), x
