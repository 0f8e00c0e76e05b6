"""Image quality metrics, one value per image.

Legend: B images, C channels (3, or 1 for grey), H x W pixels, values in [0, 1].

PSNR and LPIPS come from torchmetrics. SSIM and MS-SSIM are computed here, in float64 on the CPU: torchmetrics averages
SSIM over a border that it makes up by reflection, which moves single images by up to 0.007 (scikit-image, MATLAB and
pyiqa score the pixels whose whole window lies inside the image, and so do we), float32 costs another 5e-5 where it is
bright and flat, and its MS-SSIM differs from pyiqa's by up to 0.01.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorevar.errors import UserError
from restorevar.files import sha256

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "ImageMetrics",
    "MetricInfo",
    "check_images",
    "check_pair",
    "lpips_network",
    "luma",
]

PSNR_LIMIT = 100.0
"""dB given to (nearly) identical images, whose PSNR is infinite and would make every mean infinite."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
Values = NDArray[np.floating]
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"


@dataclass(frozen=True)
class MetricInfo:
    """What a reader must know about one metric.

    Attributes:
        label: Name for tables.
        unit: Unit, or an empty string.
        better: Which direction is better.
        digits: Digits after the point in tables.
        paired: Whether the clean photo is needed.
        definition: One sentence that fixes the number.
    """

    label: str
    unit: str
    better: Literal["higher", "lower"]
    digits: int
    paired: bool
    definition: str


_SSIM = "Gaussian window of 11 px, sigma 1.5, population covariance, K 0.01 and 0.03, whole windows only"
METRICS: dict[str, MetricInfo] = {
    "psnr": MetricInfo("PSNR", "dB", "higher", 2, True, "RGB, squared error pooled over the channels; at most 100 dB"),
    "psnr_y": MetricInfo("PSNR-Y", "dB", "higher", 2, True, "luma of BT.601, 16 to 235 (rgb2ycbcr); at most 100 dB"),
    "ssim": MetricInfo("SSIM", "", "higher", 4, True, f"RGB, mean over the channels; {_SSIM}"),
    "ssim_y": MetricInfo("SSIM-Y", "", "higher", 4, True, f"luma of BT.601, 16 to 235 (rgb2ycbcr); {_SSIM}"),
    "ms_ssim": MetricInfo("MS-SSIM", "", "higher", 4, True, "RGB, five scales with Wang's weights; as pyiqa on RGB"),
    "lpips": MetricInfo("LPIPS", "", "lower", 4, True, "RGB, AlexNet, version 0.1"),
    "musiq": MetricInfo("MUSIQ", "", "higher", 2, False, "pyiqa's musiq (KonIQ-10k), no reference"),
    "clipiqa": MetricInfo("CLIP-IQA", "", "higher", 4, False, "pyiqa's clipiqa, no reference"),
    "niqe": MetricInfo("NIQE", "", "lower", 3, False, "pyiqa's niqe, no reference"),
}
"""All metrics by their name in configs and files."""

DEFAULT_METRICS = ("psnr", "psnr_y", "ssim", "ssim_y", "ms_ssim", "lpips")
"""What `restorevar test` computes unless told otherwise; no-reference metrics need the extra `metrics`."""


def check_images(images: Tensor, name: str) -> None:
    """Refuses what cannot be scored.

    Args:
        images: (B, C, H, W) floats in [0, 1], C 3 or 1.
        name: What the message calls them.

    Raises:
        UserError: Wrong rank, channels or type, an empty batch, NaN or infinity, or values out of range.
    """
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] not in (1, 3):
        raise UserError(f"{name} images have the shape {shape}; metrics expect (B, 3, H, W), or (B, 1, H, W) for grey.")
    if images.numel() == 0:
        raise UserError(f"{name} images are empty (shape {shape}); metrics need at least one image and one pixel.")
    if not images.is_floating_point():
        raise UserError(
            f"{name} images are {images.dtype}; metrics expect floats in [0, 1]: divide 8-bit values by 255."
        )
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{name} images hold NaN or infinity; metrics expect finite values in [0, 1].")
    if low < -1e-6 or high > 1 + 1e-6:
        raise UserError(
            f"{name} images have values from {low:.4g} to {high:.4g}; metrics expect [0, 1]"
            + (": map [-1, 1] by (x + 1) / 2." if low >= -1.001 and high <= 1.001 else ".")
        )


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """Refuses a pair of batches that cannot be compared.

    Args:
        restored: (B, C, H, W) in [0, 1].
        clean: The same shape.

    Raises:
        UserError: As `check_images`, or the shapes differ.
    """
    check_images(restored, "Restored")
    check_images(clean, "Clean")
    if restored.shape != clean.shape:
        raise UserError(
            f"Restored and clean images differ in shape: {tuple(restored.shape)} and {tuple(clean.shape)}; "
            "metrics compare equal shapes. Check that the files form pairs."
        )


def luma(images: Tensor) -> Tensor:
    """Luma of BT.601 in studio range, as MATLAB's rgb2ycbcr and the super-resolution literature use it.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) in [16/255, 235/255].
    """
    weights = images.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 16.0) / 255.0


def _psnr(restored: Tensor, clean: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(restored, clean, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return value.clamp(max=PSNR_LIMIT)


class _Similarity(NamedTuple):
    """The two terms of SSIM at each pixel whose whole window lies inside: (H - 10, W - 10, C) float64."""

    luminance: Values
    contrast: Values


def _similarity(first: Values, second: Values) -> _Similarity:
    border = SSIM_WINDOW // 2

    def blurred(image: Values) -> Values:
        smooth = cv2.GaussianBlur(image, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
        return np.asarray(smooth.reshape(image.shape)[border:-border, border:-border], np.float64)

    mean_1, mean_2 = blurred(first), blurred(second)
    product, squares = mean_1 * mean_2, mean_1**2 + mean_2**2
    covariance = blurred(first * second) - product
    variances = blurred(first**2 + second**2) - squares
    c1, c2 = 0.01**2, 0.03**2
    return _Similarity((2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2))


def _ssim(first: Values, second: Values, multi_scale: bool = False) -> tuple[float, float]:
    """SSIM and, if asked for, MS-SSIM, whose finest scale it is; NaN where the image is too small or it was not.

    MS-SSIM as pyiqa has it: negative contrast counts as 0 at each pixel, odd sizes are zero-padded.
    """
    side = min(first.shape[:2])
    if side < SSIM_WINDOW:
        return math.nan, math.nan
    luminance, contrast = _similarity(first, second)
    single = float((luminance * contrast).mean())
    last = len(MS_SSIM_WEIGHTS) - 1
    if not multi_scale or side <= (SSIM_WINDOW - 1) * 2**last:
        return single, math.nan
    value = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            first, second = _halved(first), _halved(second)
            luminance, contrast = _similarity(first, second)
        contrast = np.maximum(contrast, 0)
        value *= float((luminance * contrast if scale == last else contrast).mean()) ** weight
    return single, value


def _halved(image: Values) -> Values:
    """Means of 2 x 2 blocks; an odd side gets a line of zeros before and after it, as in pyiqa and pytorch-msssim."""
    odd = [(side % 2, side % 2) for side in image.shape[:2]]
    padded = np.pad(image, (*odd, (0, 0)))
    height, width = (side // 2 * 2 for side in padded.shape[:2])
    blocks = padded[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.asarray(blocks.mean((1, 3)))


def _arrays(images: Tensor) -> Iterator[Values]:
    """(B, C, H, W) to B times (H, W, C) float64 on the CPU."""
    for image in images:
        yield np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy(), dtype=np.float64)


class ImageMetrics:
    """Chosen metrics of image pairs.

    Networks (LPIPS, no-reference metrics) are built at the first call, on the device of the images. One whose weights
    or package cannot be had is left out of the results and explained in `unavailable`.

    Args:
        names: Keys of `METRICS`.

    Raises:
        UserError: A name that is not a metric.
    """

    def __init__(self, names: Sequence[str] = DEFAULT_METRICS) -> None:
        unknown = [name for name in names if name not in METRICS]
        if unknown or not names:
            found = ", ".join(map(repr, unknown)) if unknown else "none"
            raise UserError(f"Unknown metric: {found}; choose from {', '.join(METRICS)}.")
        self.names = tuple(dict.fromkeys(names))
        self._unavailable: dict[str, str] = {}
        self._networks: dict[str, nn.Module] = {}

    @property
    def unavailable(self) -> dict[str, str]:
        """Metric name to the reason why it has no number. Builds the networks if that was not done yet."""
        self._build(torch.device("cpu"))
        return dict(self._unavailable)

    @torch.no_grad()
    def __call__(self, restored: Tensor, clean: Tensor | None) -> dict[str, Tensor]:
        """Scores a batch.

        Args:
            restored: (B, C, H, W) in [0, 1], C 3 or 1 (grey; the luma metrics are then left out).
            clean: The same shape, or None: only no-reference metrics.

        Returns:
            Metric name to (B,) float32 values on the CPU; NaN where the image is too small for the metric.

        Raises:
            UserError: As `check_pair`.
        """
        if clean is None:
            check_images(restored, "Restored")
        else:
            check_pair(restored, clean)
            clean = clean.float()
        restored = restored.float()
        self._build(restored.device)
        # scores are the same whatever precision the model runs in
        with torch.autocast(restored.device.type, enabled=False):
            values = self._pixels(restored, clean) if clean is not None else {}
            for name, network in self._networks.items():
                if clean is not None or not METRICS[name].paired:
                    values[name] = self._deep(name, network.to(restored.device), restored, clean)
        return {name: values[name].float().cpu() for name in self.names if name in values}

    def _pixels(self, restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Metrics without networks."""
        values: dict[str, Tensor] = {}
        color = restored.shape[1] == 3
        restored_y, clean_y = (luma(restored), luma(clean)) if color else (restored, clean)
        if "psnr" in self.names:
            values["psnr"] = _psnr(restored, clean)
        if "psnr_y" in self.names and color:
            values["psnr_y"] = _psnr(restored_y, clean_y)
        if {"ssim", "ms_ssim"} & set(self.names):
            pairs = zip(_arrays(restored), _arrays(clean), strict=True)
            found = torch.tensor([_ssim(*pair, multi_scale="ms_ssim" in self.names) for pair in pairs])
            values["ssim"], values["ms_ssim"] = found.T
        if "ssim_y" in self.names and color:
            pairs = zip(_arrays(restored_y), _arrays(clean_y), strict=True)
            values["ssim_y"] = torch.tensor([_ssim(*pair)[0] for pair in pairs])
        return values

    def _deep(self, name: str, network: "nn.Module", restored: Tensor, clean: Tensor | None) -> Tensor:
        """One network metric, image by image: the memory of one, and one value each."""
        values = []
        for index in range(restored.shape[0]):
            image = restored[index : index + 1].expand(-1, 3, -1, -1).clamp(0, 1)
            if min(image.shape[-2:]) < 64:  # AlexNet's and NIQE's smallest sensible input
                values.append(restored.new_tensor(math.nan))
            elif METRICS[name].paired and clean is not None:
                values.append(network(image, clean[index : index + 1].expand(-1, 3, -1, -1).clamp(0, 1)).flatten()[0])
            else:
                values.append(network(image).flatten()[0])
        return torch.stack(values)

    def _build(self, device: torch.device) -> None:
        """Builds networks that were asked for and not tried yet."""
        for name in self.names:
            if name in self._networks or name in self._unavailable or name not in _BUILDERS:
                continue
            try:
                self._networks[name] = _BUILDERS[name](name).to(device)
            except _UnavailableError as reason:
                self._unavailable[name] = str(reason)


class _UnavailableError(Exception):
    """A metric cannot be had; the text is for the user."""


def _build_lpips(name: str) -> "nn.Module":
    """LPIPS with AlexNet from a local file; torchmetrics ships the learned heads."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
    if not path.is_file():
        raise _UnavailableError(
            f"AlexNet's weights are not at {path}; put {ALEXNET_FILE} (torchvision, ImageNet) there or set TORCH_HOME"
        )
    # the file name holds the first digits of its digest, which torch checks only while downloading
    if not sha256(path).startswith(path.stem.rsplit("-", 1)[1]):
        raise _UnavailableError(f"{path} is damaged: its SHA-256 does not match its name")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def lpips_network() -> "tuple[nn.Module | None, str]":
    """The LPIPS network for a training loss, or None and the reason why it cannot be had."""
    try:
        return _build_lpips("lpips"), ""
    except _UnavailableError as reason:
        return None, str(reason)


def _build_pyiqa(name: str) -> "nn.Module":
    """A no-reference metric of pyiqa, with its weights from the cache or downloaded."""
    try:
        import pyiqa
    except ImportError as error:
        raise _UnavailableError(
            f'pyiqa cannot be imported ({error}); in the repository: `python -m pip install ".[metrics]"`'
            " (non-commercial licence)"
        ) from error
    try:
        return pyiqa.create_metric(name, device=torch.device("cpu"), as_loss=False).eval()
    except Exception as error:  # pyiqa raises whatever its download or parsing raised
        raise _UnavailableError(
            f"pyiqa could not load its weights ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:160]


_BUILDERS: dict[str, Callable[[str], "nn.Module"]] = {
    "lpips": _build_lpips,
    "musiq": _build_pyiqa,
    "clipiqa": _build_pyiqa,
    "niqe": _build_pyiqa,
}
