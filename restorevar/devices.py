"""Which device to compute on, and with which numbers. Imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

from restorevar.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["choose_device", "choose_precision", "computes_bfloat16"]


def choose_device(name: str) -> "torch.device":
    """The device of a name; ``auto`` is a GPU if there is one.

    Raises:
        UserError: If it is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"device {name} is not available here; there is: {there}")
    return torch.device(name)


def choose_precision(name: str, device: "torch.device") -> "torch.dtype":
    """The number type of a name; ``auto`` is bfloat16 where the device computes it natively."""
    import torch

    if name == "auto":
        name = "bfloat16" if computes_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def computes_bfloat16(device: "torch.device") -> bool:
    """Whether a device multiplies bfloat16 natively; elsewhere it is emulated, many times slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = Path("/proc/cpuinfo")
    if device.type != "cpu" or not flags.exists():
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.read_text().split())
