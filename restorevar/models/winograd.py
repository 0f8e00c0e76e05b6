"""3x3 convolution with half the multiply-adds: Winograd's algorithm F(4, 3) over rows (arXiv 1509.09308)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from restorevar.models.products import even_slices

__all__ = ["saves_time", "winograd_convolution"]

# four rows of the result come of six rows of the input
ROWS = 4
LINES = 6

# The points (0, p, -p, q, -q, infinity) at which rows and taps, read as polynomials, are multiplied. The usual 1 and 2
# err by half as much again; p q = 1 spares two sums.
P, Q = 2 / 3, 3 / 2
# what the kernels at p and q are multiplied by: the divisor of interpolation, and a factor that saves sums below
_SCALE_P, _SCALE_Q = P / (2 * P**2 * (P**2 - Q**2)), Q**2 / (2 * Q**2 * (Q**2 - P**2))
# biases of the six that add up to one bias in each of the four rows
_BIASES = (1 - 1 / P**2, (1 / P + 1) / 2, (1 / P - 1) / 2, 0.0, 0.0, 1 - P**2)

# bytes of rows transformed at a time: a part of the last-level cache
BLOCK = 1 << 24
# C_in C_out H W, H W and C_in C_out / (C_in + C_out) below which the many calls, the kernels' own transform and the
# sums cost more than they save; found on two cores of a Zen 4, and a little higher for processors whose products are
# faster than their sums
LEAST = {torch.float32: (1 << 27, 1 << 10, 48), torch.bfloat16: (1 << 28, 1 << 11, 64)}


def saves_time(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`winograd_convolution` can be used and is faster than a direct convolution.

    Args:
        x: (B, C_in, H, W), float32 or bfloat16.
        weight: (C_out, C_in, 3, 3).
    """
    filters, channels = weight.shape[:2]
    height, width = x.shape[2:]
    if height % ROWS:
        return False
    pixels, pairs = height * width, channels * filters
    least_work, least_pixels, least_channels = LEAST[x.dtype]
    return pixels * pairs >= least_work and pixels >= least_pixels and pairs >= least_channels * (channels + filters)


def _kernels(weight: Tensor) -> Tensor:
    """Six kernels (6, C_out, C_in, 1, 3), each channels-last, of one (C_out, C_in, 3, 3)."""
    taps = weight.permute(2, 0, 3, 1).contiguous().float()  # (3 rows, C_out, 3, C_in)
    kernels = taps.new_empty(LINES, *taps.shape[1:])
    kernels[0], kernels[5] = taps[0], taps[2]
    for first, point, scale in ((1, P, _SCALE_P), (3, Q, _SCALE_Q)):
        even = torch.add(taps[0], taps[2], alpha=point**2).mul_(scale)
        torch.add(even, taps[1], alpha=scale * point, out=kernels[first])
        torch.add(even, taps[1], alpha=-scale * point, out=kernels[first + 1])
    return kernels.to(weight.dtype).unsqueeze(2).permute(0, 1, 4, 2, 3)


def _transform(source: Tensor, lines: Tensor, even: Tensor, odd: Tensor) -> None:
    """Rows of the input (4 n + 2, W, C) to the six lines (6, n, W, C) that are convolved; the others are memory."""
    count = lines.shape[1]
    rows = [source[first::ROWS][:count] for first in range(LINES)]
    torch.add(rows[4], rows[2], alpha=-(Q**2), out=even)
    torch.add(rows[3], rows[1], alpha=-(Q**2), out=odd)
    torch.add(rows[0], even, out=lines[0]).add_(rows[2], alpha=-(P**2))
    torch.add(even, odd, alpha=P, out=lines[1])
    torch.add(even, odd, alpha=-P, out=lines[2])
    torch.add(rows[4], rows[2], alpha=-(P**2), out=even)
    torch.add(rows[3], rows[1], alpha=-(P**2), out=odd)
    torch.add(even, odd, alpha=Q, out=lines[3])
    torch.add(even, odd, alpha=-Q, out=lines[4])
    torch.add(rows[5], odd, alpha=-(Q**2), out=lines[5]).add_(rows[3], alpha=-(P**2))


def _transform_back(lines: list[Tensor], result: Tensor, sum_p: Tensor, sum_q: Tensor) -> None:
    """The six convolved lines, (n, W, C) each, to rows of the result (4 n, W, C); all others are overwritten."""
    torch.add(lines[1], lines[2], out=sum_p)
    torch.add(lines[3], lines[4], out=sum_q)
    difference_p, difference_q = lines[1].sub_(lines[2]), lines[3].sub_(lines[4])
    torch.add(lines[0].add_(sum_p, alpha=1 / P), sum_q, alpha=1 / Q**2, out=result[0::ROWS])
    torch.add(difference_p, difference_q, alpha=1 / Q, out=result[1::ROWS])
    torch.add(sum_q, sum_p, alpha=P, out=result[2::ROWS])
    torch.add(lines[5].add_(difference_p, alpha=P**2), difference_q, alpha=Q, out=result[3::ROWS])


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv2d`` with a 3x3 kernel and padding 1, without gradients.

    Four rows of a result are products of polynomials in the rows, known from their values at six points: six
    convolutions with 1x3 kernels for twelve. The result is the same up to rounding: 8e-7 off in float32 (relative
    norm; a direct convolution 6e-7), 8e-3 in bfloat16 (2e-3), and 1e-2 of what is left of an input whose mean is five
    deviations and cancels, since sums and differences of rows are rounded.

    Args:
        x: (B, C_in, H, W), channels-last, H a multiple of 4.
        weight: (C_out, C_in, 3, 3).
        bias: (C_out,).

    Returns:
        (B, C_out, H, W), channels-last.
    """
    batch, channels, height, width = x.shape
    filters = len(weight)
    kernels = _kernels(weight)
    biases = [bias * factor if bias is not None and factor else None for factor in _BIASES]
    result = x.new_empty(batch, height, width, filters)
    groups = height // ROWS
    blocks = even_slices(groups, BLOCK // (LINES * width * channels * x.element_size()))
    longest = max(block.stop - block.start for block in blocks)
    lines = x.new_empty(LINES, longest, width, channels)
    memory = x.new_empty(2, longest, width, max(channels, filters))
    for photo, out in zip(x.permute(0, 2, 3, 1), result, strict=True):
        for block in blocks:
            count = block.stop - block.start
            above, below = ROWS * block.start - 1, ROWS * block.stop + 1
            source = photo[max(above, 0) : below]
            if above < 0 or below > height:
                source = F.pad(source, (0, 0, 0, 0, int(above < 0), int(below > height)))
            _transform(source, lines[:, :count], memory[0, :count, :, :channels], memory[1, :count, :, :channels])
            convolved = [
                F.conv2d(line.permute(2, 0, 1)[None], kernel, some, padding=(0, 1))[0].permute(1, 2, 0)
                for line, kernel, some in zip(lines[:, :count], kernels, biases, strict=True)
            ]
            rows = out[ROWS * block.start : ROWS * block.stop]
            _transform_back(convolved, rows, memory[0, :count, :, :filters], memory[1, :count, :, :filters])
            del convolved  # the next block's take its place
    return result.permute(0, 3, 1, 2)
