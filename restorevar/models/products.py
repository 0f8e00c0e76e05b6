"""Matrix products through the fastest library at hand.

With AVX-512, PyTorch's library for float32 matrices reaches half of oneDNN's speed on processors of another maker, and
its CPU attention stands on that library. Without gradients both go to oneDNN there (but for small heads), through the
operator that PyTorch's own compiler emits. With AVX2 alone products are equally fast either way, and PyTorch's
attention is faster. Everywhere else these are the standard functions.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "attention", "by_onednn", "even_slices", "linear"]

Gelu = Literal["none", "tanh"]  # exact form or tanh form, as in torch.nn.functional.gelu

# attention scores handled at a time: 2 MiB in float32, which the second-level caches hold
SCORE_BLOCK = 1 << 19
# the same in bfloat16, of several heads: 4 MiB
SCORE_BLOCK_OF_HEADS = 1 << 21
# keys that are looked at for a rough maximum of a row of scores
SAMPLED_KEYS = 64
# multiply-adds of one head below which calls cost more than they save
SMALLEST_HEAD = 1 << 22
# scores of one head up to which training in bfloat16 on a CPU keeps them: they stay in the second-level caches
LARGEST_KEPT_HEAD = 1 << 18


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN is to be asked directly: eager inference on a CPU, in a number type that it computes natively."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu") or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _attends_by_onednn(value: Tensor) -> bool:
    """Whether attention in parts beats SDPA: where SDPA's products, PyTorch's own, are the slower ones."""
    return by_onednn(value) and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: Gelu | None = None) -> Tensor:
    """Computes x weight^T + bias, with GELU where asked for, by oneDNN.

    Weights must be contiguous, or the transpose of a contiguous matrix: for other strides oneDNN has plain loops only,
    a thousand times slower.
    """
    activation, form = ("none", "") if gelu is None else ("gelu", gelu)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, activation, [], form)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: Gelu | None = None) -> Tensor:
    """``torch.nn.functional.linear``, followed by GELU where asked for.

    Args:
        x: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,).
        gelu: Form of GELU, None for none.

    Returns:
        (..., C_out).
    """
    if by_onednn(x) and weight.dtype == x.dtype and weight.is_contiguous():
        return _product(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return y if gelu is None else F.gelu(y, approximate=gelu)


class Linear(nn.Linear):
    """``nn.Linear`` that can end in GELU."""

    def forward(self, x: Tensor, gelu: Gelu | None = None) -> Tensor:
        """(..., C_in) -> (..., C_out); see :func:`linear`."""
        return linear(x, self.weight, self.bias, gelu)


def _keeps_scores(value: Tensor, scores: int) -> bool:
    """Whether plain products win: SDPA's CPU kernels reach a third of their rate, forwards and backwards.

    Frozen parts of a training run count as training: under autocast there is no other fast path.
    """
    training = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    trains_on_cpu = value.device.type == "cpu" and training and not torch.compiler.is_compiling()
    return trains_on_cpu and value.dtype == torch.bfloat16 and scores <= LARGEST_KEPT_HEAD


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v.

    Args:
        query: (B, heads, n, D).
        key: (B, heads, m, D).
        value: (B, heads, m, D); its number type is the result's.
        scale: Factor of the scores; None is 1 / sqrt(D).

    Returns:
        (B, heads, n, D), heads next to channels in memory when computed here in blocks.
    """
    tokens, width = query.shape[2:]
    length = key.shape[2]
    by_products = _keeps_scores(value, tokens * length)
    if not by_products and not _attends_by_onednn(value):
        return F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, scale=scale)
    scale = width**-0.5 if scale is None else scale
    if scale != 1.0:
        query = query * scale
    if by_products:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return torch.matmul(torch.matmul(query, key.transpose(2, 3)).softmax(-1), value)
    if tokens * length * width < SMALLEST_HEAD:
        scores = torch.matmul(query.float(), key.float().transpose(2, 3))
        return torch.matmul(scores.softmax(-1).to(value.dtype), value)
    if value.dtype == torch.bfloat16:
        return _attend_in_bfloat16(query.to(value.dtype), key.to(value.dtype), value)
    return _attend_in_float32(query, key, value)


def even_slices(count: int, most: int) -> list[slice]:
    """Slices through ``count`` of at most ``most`` each, whose lengths differ by one at most: short ones are slow.

    Args:
        count: What is to be gone through, 1 or more.
        most: Length of the longest allowed; taken for 1 if it is less.
    """
    parts = math.ceil(count / max(most, 1))
    return [slice(start, stop) for start, stop in pairwise(count * part // parts for part in range(parts + 1))]


def _attend_in_float32(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v, head by head."""
    batch, heads, tokens, width = query.shape
    attended = value.new_empty(batch, tokens, heads, width).transpose(1, 2)
    blocks = even_slices(tokens, SCORE_BLOCK // key.shape[2])
    for sample in range(batch):
        for head in range(heads):
            keys, values = key[sample, head].contiguous(), value[sample, head].contiguous().T
            for rows in blocks:
                scores = _product(query[sample, head, rows], keys)
                torch.softmax(scores, dim=-1, out=scores)
                attended[sample, head, rows] = _product(scores, values)
    return attended


def _attend_in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v with scores in bfloat16, several heads at a time.

    Scores are relative to the largest that a few keys give: bfloat16 is finest near 0, where the softmax looks. One
    more channel subtracts it within the product, so that they are rounded once.
    """
    batch, heads, tokens, width = query.shape
    length = key.shape[2]
    sampled = key[:, :, :: max(length // SAMPLED_KEYS, 1)]
    rough = torch.matmul(query, sampled.transpose(2, 3)).amax(-1, keepdim=True)
    queries = torch.cat([query, rough.neg_()], dim=-1)
    keys = F.pad(key, (0, 1), value=1.0).transpose(2, 3)
    values = value.contiguous()
    attended = value.new_empty(batch, tokens, heads, width).transpose(1, 2)
    group = max(SCORE_BLOCK_OF_HEADS // (tokens * length), 1)
    blocks = even_slices(tokens, SCORE_BLOCK_OF_HEADS // (group * length))
    for sample in range(batch):
        for first in range(0, heads, group):
            some = (sample, slice(first, first + group))
            for rows in blocks:
                scores = torch.bmm(queries[some][:, rows], keys[some])
                torch.softmax(scores, dim=-1, out=scores)
                attended[some][:, rows] = torch.bmm(scores, values[some])
    return attended
