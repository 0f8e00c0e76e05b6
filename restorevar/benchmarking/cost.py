"""A model's nominal operations, and the rates that a machine reaches on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from restorevar.models import RestoreVAR
from restorevar.models.products import linear

__all__ = ["Cost", "RateCall", "Rates", "count", "counting", "rate_calls"]


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one restored photo, two a multiply-add.

    Attributes:
        convolutions: Of convolutions.
        products: Of matrix products.
    """

    convolutions: float
    products: float


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second.

    Attributes:
        product: Of a square matrix product through ``torch.matmul``.
        fast_product: Of the same through the library that the model uses here.
        convolution: Of a 3x3 convolution of 160 channels, channels-last.
    """

    product: float
    fast_product: float
    convolution: float

    def floor(self, cost: Cost) -> float:
        """Seconds of a photo's nominal operations at these rates; algorithms that do with fewer can be faster."""
        return cost.convolutions / self.convolution + cost.products / max(self.product, self.fast_product)


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the floating-point operations of what is done inside, on whatever device.

    By standard operators only: the counter knows neither oneDNN's, nor the fused attention of CPUs, which goes by the
    name of flash attention there.
    """
    known = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    with torch.backends.mkldnn.flags(enabled=False), known, FlopCounterMode(display=False) as counter:
        yield counter


def count(model: RestoreVAR, fidelity: float | None = None) -> Cost:
    """Counts one photo's operations on a copy without memory; nothing is computed.

    Args:
        model: The model.
        fidelity: As in :meth:`RestoreVAR.generate`.
    """
    with torch.device("meta"):
        shadow = RestoreVAR(model.config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        shadow = shadow.to_empty(device="cpu")
        shadow.rebuild_tables()
        photo = torch.empty(1, 3, *model.image_size)
        with counting() as counter:
            shadow.generate(photo, fidelity=fidelity)
    operations = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(flops for name, flops in operations.items() if "conv" in name)
    return Cost(convolutions, sum(operations.values()) - convolutions)


@dataclass(frozen=True)
class RateCall:
    """Something to time, whose operations are known.

    Attributes:
        call: Does it.
        operations: Floating-point operations of one call.
    """

    call: Callable[[], Any]
    operations: float


def rate_calls(device: torch.device, dtype: torch.dtype, side: int = 4096, pixels: int = 512) -> dict[str, RateCall]:
    """What tells the rates of the machine, by their names in :class:`Rates`.

    Args:
        device: Where.
        dtype: Of the operands.
        side: Of the matrices.
        pixels: Side of the map that is convolved.
    """
    matrix = torch.randn(side, side, device=device).to(dtype)
    kernel = torch.randn(160, 160, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    image = torch.randn(1, 160, pixels, pixels, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    return {
        "product": RateCall(lambda: matrix @ matrix, 2 * side**3),
        "fast_product": RateCall(lambda: linear(matrix, matrix), 2 * side**3),
        "convolution": RateCall(lambda: F.conv2d(image, kernel, padding=1), 2 * 160 * 160 * 9 * pixels**2),
    }
