"""Protocols: what is done to the images before they are scored, written beside every score.

Papers in this field differ in colour space, resizing, rounding and cropping, which moves PSNR by up to several dB.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorevar.errors import UserError
from restorevar.evaluation.metrics import check_pair

__all__ = ["PROTOCOLS", "Compared", "Protocol", "ProtocolName", "find_protocol"]

ProtocolName = Literal["native", "paper", "registered_gray"]


class Compared(NamedTuple):
    """A pair as it is scored.

    Attributes:
        restored: (B, C, h, w) in [0, 1].
        clean: The same shape.
        shifts: For each image the (down, right) shift of the restored image in pixels that was undone.
    """

    restored: Tensor
    clean: Tensor
    shifts: list[tuple[int, int]]


@dataclass(frozen=True)
class Protocol:
    """How a restored photo is compared with its clean one.

    Attributes:
        name: Name in files and tables.
        resize: (height, width) to which degraded and clean photos are resized with Pillow's Lanczos BEFORE restoration;
            None keeps each photo's own size.
        round_to_8_bits: Whether the restored image is rounded to 8 bits first, as a saved file is.
        crop_border: Pixels cut from each side before scoring.
        color: `rgb`, or `gray`: both images become one channel (BT.601 full range) first.
        max_shift: The best of all whole-pixel shifts up to this many pixels each way is scored, for pairs that were not
            registered; as many pixels are cut from each side.
        in_averages: Whether the scores join averages over data sets.
        data_range: Peak of PSNR and SSIM, the same for all: images are in [0, 1].
    """

    name: str
    resize: tuple[int, int] | None = None
    round_to_8_bits: bool = True
    crop_border: int = 0
    color: Literal["rgb", "gray"] = "rgb"
    max_shift: int = 0
    in_averages: bool = True
    data_range: ClassVar[float] = 1.0

    def as_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return asdict(self) | {"data_range": self.data_range}

    def describe(self) -> str:
        """One line for people."""
        cut = self.crop_border + self.max_shift
        parts = [
            "own size" if self.resize is None else f"resized to {self.resize[0]} x {self.resize[1]} (Lanczos)",
            "rounded to 8 bits" if self.round_to_8_bits else "not rounded",
            f"{cut} px cut from each side" if cut else "no crop",
            "RGB, and luma (BT.601) where a metric says Y" if self.color == "rgb" else "grey (BT.601)",
            f"range {self.data_range:g}",
        ]
        if self.max_shift:
            parts.append(f"best shift of up to {self.max_shift} px")
        if not self.in_averages:
            parts.append("outside the averages")
        return ", ".join(parts)

    def resize_photo(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A degraded or clean photo as this protocol wants it.

        Args:
            photo: (H, W, 3) uint8.

        Returns:
            (h, w, 3) uint8; the same array where the size is right already.
        """
        if self.resize is None or photo.shape[:2] == tuple(self.resize):
            return photo
        from PIL import Image

        height, width = self.resize
        return np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))

    def prepare(self, restored: Tensor, clean: Tensor) -> Compared:
        """A batch as it is to be scored: rounded, grey, shifted and cropped.

        Args:
            restored: (B, 3, H, W) in [0, 1]; with `resize`, already of that size.
            clean: The same shape.

        Returns:
            What the metrics get, and the shifts used.

        Raises:
            UserError: The images cannot be compared, or are smaller than what is cut off.
        """
        check_pair(restored, clean)
        size = (restored.shape[-2], restored.shape[-1])
        if self.resize is not None and size != tuple(self.resize):
            raise UserError(
                f"The protocol {self.name!r} scores images of {self.resize[0]} x {self.resize[1]}; found {size[0]} x "
                f"{size[1]}. Resize degraded and clean photos with `Protocol.resize_photo` before restoring."
            )
        if min(size) <= 2 * (self.crop_border + self.max_shift):
            raise UserError(
                f"Images of {size[0]} x {size[1]} px are too small for the protocol {self.name!r}, which cuts "
                f"{self.crop_border + self.max_shift} px from each side."
            )
        restored, clean = restored.float(), clean.float()
        if self.round_to_8_bits:
            restored = (restored * 255).round() / 255
        if self.color == "gray" and restored.shape[1] == 3:
            restored, clean = _gray(restored), _gray(clean)
        shifts = [(0, 0)] * restored.shape[0]
        if self.max_shift:
            registered = [_best_shift(a, b, self.max_shift) for a, b in zip(restored, clean, strict=True)]
            restored = torch.stack([pair[0] for pair in registered])
            shifts = [pair[1] for pair in registered]
            clean = _crop(clean, self.max_shift)
        return Compared(_crop(restored, self.crop_border), _crop(clean, self.crop_border), shifts)

    def prepare_single(self, restored: Tensor) -> Tensor:
        """A batch without clean photos as no-reference metrics get it: (B, C, h, w) in [0, 1]."""
        return self.prepare(restored, restored).restored


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "native": Protocol("native"),
    "paper": Protocol("paper", resize=(512, 512), round_to_8_bits=False),
    "registered_gray": Protocol("registered_gray", color="gray", max_shift=2, in_averages=False),
}
"""`native` is the default; `paper` is for the published tables only; `registered_gray` for grey camera-shake pairs."""


def find_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        UserError: There is none.
    """
    for known, protocol in PROTOCOLS.items():
        if known == name:
            return protocol
    raise UserError(f"Unknown protocol {name!r}; choose from {', '.join(PROTOCOLS)}.")


def _gray(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).clamp(0, 1)


def _crop(images: Tensor, border: int) -> Tensor:
    return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]


def _best_shift(restored: Tensor, clean: Tensor, most: int) -> tuple[Tensor, tuple[int, int]]:
    """The window of ``restored`` (C, H, W) nearest in squared error to ``clean`` without its border, and its shift."""
    height, width = clean.shape[-2] - 2 * most, clean.shape[-1] - 2 * most
    target = _crop(clean, most)
    shifts = [(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)]
    windows = [restored[:, most + d : most + d + height, most + r : most + r + width] for d, r in shifts]
    best = min(range(len(shifts)), key=lambda index: float((windows[index] - target).square().mean()))
    return windows[best], shifts[best]
