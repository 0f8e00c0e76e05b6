"""What a model is compared with: classical methods, an oracle, and any command that maps a folder to a folder.

Pixels are (H, W, 3) uint8 RGB. A classical method is applied to the kinds of degradation that it was made for, so it is
told the kind, which a blind model is not. Parameters have the values that `scripts/tune_baselines.py` found on training
photos (see `docs/evaluation.md`).
"""

import math
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from restorevar.errors import UserError
from restorevar.evaluation.scores import Role

__all__ = [
    "CLASSICAL",
    "Bilateral",
    "Clahe",
    "Classical",
    "ContrastStretch",
    "DarkChannel",
    "Gamma",
    "Median",
    "RichardsonLucy",
    "Wiener",
    "fit_kernel",
    "oracle_deconvolution",
    "run_command",
]

Pixels = NDArray[np.uint8]


class Classical(ABC):
    """A method without training.

    Attributes:
        name: Name in tables.
        kinds: Kinds of degradation that it is applied to.
        role: `blind`: it sees the degraded photo only (and is told the kind).
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    role: ClassVar[Role] = "blind"

    @abstractmethod
    def __call__(self, photo: Pixels) -> Pixels:
        """Restores a photo.

        Args:
            photo: (H, W, 3) uint8.

        Returns:
            The same shape and type.
        """


@dataclass(frozen=True)
class ContrastStretch(Classical):
    """Linear stretch of each channel between two percentiles.

    Args:
        percent: This share of the pixels saturates at each end, in percent.
        strength: 0 leaves the photo, 1 stretches fully.
    """

    name: ClassVar[str] = "contrast stretch"
    kinds: ClassVar[tuple[str, ...]] = ("haze",)
    percent: float = 0.01
    strength: float = 1.0

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        low, high = np.percentile(photo, (self.percent, 100 - self.percent), axis=(0, 1))
        stretched = (photo - low) / np.maximum(high - low, 1.0) * 255
        return _to_pixels((photo + self.strength * (stretched - photo)) / 255)


@dataclass(frozen=True)
class DarkChannel(Classical):
    """Dark channel prior with a guided filter (He, Sun and Tang, PAMI 2011 and 2013).

    Args:
        patch: Side of the minimum filter in pixels, for a short side of 512.
        omega: Share of the haze that is removed.
        least_transmission: Lower bound of the transmission.
        radius: Radius of the guided filter in pixels, for a short side of 512.
    """

    name: ClassVar[str] = "dark channel prior"
    kinds: ClassVar[tuple[str, ...]] = ("haze",)
    patch: int = 15
    omega: float = 0.65
    least_transmission: float = 0.1
    radius: int = 40

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        image = photo.astype(np.float32) / 255
        unit = min(photo.shape[:2]) / 512
        patch = np.ones((max(3, round(self.patch * unit)),) * 2, np.uint8)
        dark = cv2.erode(image.min(axis=2), patch)
        haziest = np.argpartition(dark.ravel(), -max(1, dark.size // 1000))[-max(1, dark.size // 1000) :]
        airlight = np.maximum(image.reshape(-1, 3)[haziest].mean(axis=0), 0.1)
        transmission = 1 - self.omega * cv2.erode((image / airlight).min(axis=2), patch)
        transmission = _guided_filter(image.mean(axis=2), transmission, max(2, round(self.radius * unit)), 1e-3)
        transmission = np.clip(transmission, self.least_transmission, 1)[..., None]
        return _to_pixels((image - airlight) / transmission + airlight)


@dataclass(frozen=True)
class Clahe(Classical):
    """Contrast-limited adaptive histogram equalization of the lightness.

    Args:
        clip_limit: Contrast limit.
        tiles: Tiles along each side.
    """

    name: ClassVar[str] = "CLAHE"
    kinds: ClassVar[tuple[str, ...]] = ("low_light",)
    clip_limit: float = 4.0
    tiles: int = 1

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)
        lab[..., 0] = cv2.createCLAHE(self.clip_limit, (self.tiles, self.tiles)).apply(
            np.ascontiguousarray(lab[..., 0])
        )
        return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


@dataclass(frozen=True)
class Gamma(Classical):
    """The power that brings the mean to a target.

    Args:
        target: Mean value to reach, in (0, 1).
    """

    name: ClassVar[str] = "automatic gamma"
    kinds: ClassVar[tuple[str, ...]] = ("low_light",)
    target: float = 0.5

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        mean = float(np.clip(photo.mean() / 255, 1e-3, 1 - 1e-3))
        power = min(1.0, math.log(self.target) / math.log(mean))
        table = np.linspace(0, 1, 256) ** power
        return _to_pixels(table)[photo]


@dataclass(frozen=True)
class Median(Classical):
    """Median of a square window, channel by channel.

    Args:
        size: Side of the window in pixels, odd.
    """

    name: ClassVar[str] = "median"
    kinds: ClassVar[tuple[str, ...]] = ("rain", "snow")
    size: int = 3

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        return np.asarray(cv2.medianBlur(photo, self.size), np.uint8)


@dataclass(frozen=True)
class Bilateral(Classical):
    """Bilateral filter.

    Args:
        color_sigma: Standard deviation over values, of 255.
        space_sigma: Standard deviation over pixels.
    """

    name: ClassVar[str] = "bilateral"
    kinds: ClassVar[tuple[str, ...]] = ("rain", "snow")
    color_sigma: float = 5.0
    space_sigma: float = 1.0

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        diameter = 2 * math.ceil(2 * self.space_sigma) + 1
        return np.asarray(cv2.bilateralFilter(photo, diameter, self.color_sigma, self.space_sigma), np.uint8)


@dataclass(frozen=True)
class Wiener(Classical):
    """Wiener deconvolution with a Gaussian kernel, whatever the true one.

    Args:
        sigma: Standard deviation of the kernel in pixels.
        balance: Weight of the smoothness prior.
    """

    name: ClassVar[str] = "Wiener"
    kinds: ClassVar[tuple[str, ...]] = ("motion_blur",)
    sigma: float = 1.4
    balance: float = 0.3

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        return next(_deconvolve(photo, _gaussian(self.sigma), (self.balance,)))


@dataclass(frozen=True)
class RichardsonLucy(Classical):
    """Richardson-Lucy deconvolution with a Gaussian kernel, whatever the true one.

    Args:
        sigma: Standard deviation of the kernel in pixels.
        iterations: Number of steps.
    """

    name: ClassVar[str] = "Richardson-Lucy"
    kinds: ClassVar[tuple[str, ...]] = ("motion_blur",)
    sigma: float = 2.0
    iterations: int = 5

    def __call__(self, photo: Pixels) -> Pixels:
        """See `Classical`."""
        from skimage.restoration import richardson_lucy

        kernel = _gaussian(self.sigma)
        border = kernel.shape[0]
        padded = np.pad(photo / 255.0, ((border, border), (border, border), (0, 0)), mode="symmetric")
        channels = [
            richardson_lucy(padded[..., channel], kernel, num_iter=self.iterations, filter_epsilon=1e-3)
            for channel in range(3)
        ]
        return _to_pixels(np.stack(channels, axis=-1)[border:-border, border:-border])


CLASSICAL: tuple[Classical, ...] = (
    ContrastStretch(),
    DarkChannel(),
    Clahe(),
    Gamma(),
    Median(),
    Bilateral(),
    Wiener(),
    RichardsonLucy(),
)
"""All classical methods with their tuned parameters."""


def fit_kernel(degraded: Pixels, clean: Pixels, exponent: float = 1.0) -> NDArray[np.float64]:
    """The one blur kernel that best turns the clean photo into the blurred one (regularised least squares).

    Args:
        degraded: (H, W, 3) uint8.
        clean: The same.
        exponent: Values are raised to it first; about 2.2 makes them light.

    Returns:
        (side, side), odd, non-negative, sum 1, centred; it reaches 40 px each way for a short side of 512.
    """
    height, width = clean.shape[:2]
    reach = min(round(40 * min(height, width) / 512), (min(height, width) - 1) // 4)
    window = np.outer(np.hanning(height), np.hanning(width))[..., None]  # no wrap-around at the border
    blurred, sharp = (
        np.fft.rfft2((image - image.mean((0, 1))) * window, axes=(0, 1))
        for image in ((photo / 255.0) ** exponent for photo in (degraded, clean))
    )
    power = (np.abs(sharp) ** 2).sum(-1)
    transfer = (np.conj(sharp) * blurred).sum(-1) / (power + 1e-3 * power.mean() + 1e-12)
    kernel = np.fft.fftshift(np.fft.irfft2(transfer, s=(height, width)))
    top, left = height // 2 - reach, width // 2 - reach
    kernel = kernel[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
    kernel = np.where(kernel > 0.15 * kernel.max(), kernel, 0.0)  # what is below is the fit's noise
    if kernel.sum() <= 0:  # a flat photo tells nothing
        kernel = np.zeros_like(kernel)
        kernel[reach, reach] = 1.0
    return np.asarray(kernel / kernel.sum(), np.float64)


def oracle_deconvolution(degraded: Pixels, clean: Pixels) -> Pixels:
    """Wiener deconvolution with the kernel of this very pair, and the smoothing that comes nearest to the clean photo.

    What no user has, hence an oracle: it shows how much of a uniform blur can be undone by a linear filter at all.

    Args:
        degraded: (H, W, 3) uint8.
        clean: The same.

    Returns:
        (H, W, 3) uint8.
    """
    best, least = degraded, math.inf
    for exponent in (1.0, 2.2):
        kernel = fit_kernel(degraded, clean, exponent)
        for restored in _deconvolve(degraded, kernel, (0.003, 0.03, 0.3, 3.0), exponent):
            error = float(np.mean((restored.astype(np.float32) - clean) ** 2))
            if error < least:
                best, least = restored, error
    return best


def run_command(command: str, degraded: Path, restored: Path) -> None:
    """Runs a rival: any command that restores a folder of photos into another.

    Args:
        command: Command line with `{input}` and `{output}` where the folders go. It is not given to a shell.
        degraded: Folder of PNG files.
        restored: Existing, empty folder, to be filled with files of the same names (the ending may differ).

    Raises:
        UserError: The command has no place for the folders, cannot be started or fails.
    """
    words = shlex.split(command)
    if not words or "{input}" not in command or "{output}" not in command:
        raise UserError(
            f"The rival's command is {command!r}; expected one with {{input}} and {{output}} for the folders."
        )
    words = [word.replace("{input}", str(degraded)).replace("{output}", str(restored)) for word in words]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        raise UserError(f"The rival's command cannot be started: {words[0]} ({error.strerror}).") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UserError(
            f"The rival's command left with exit code {done.returncode}: {last[0][:200]}\n{shlex.join(words)}"
        )


def _to_pixels(image: NDArray[np.floating]) -> Pixels:
    """[0, 1] to uint8, rounded."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    line = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
    return np.asarray(line @ line.T, np.float64)


def _deconvolve(
    photo: Pixels, kernel: NDArray[np.float64], balances: Sequence[float], exponent: float = 1.0
) -> Iterator[Pixels]:
    """Wiener deconvolution of the values to a power, with each of several weights of the smoothness prior.

    As `skimage.restoration.wiener`, with what the weights share computed once, and sides that transforms are fast for.
    """
    from scipy.fft import next_fast_len
    from skimage.restoration import uft

    border = min(kernel.shape[0], *photo.shape[:2])
    sides = tuple(next_fast_len(side + 2 * border, real=True) for side in photo.shape[:2])
    ends = [(border, long - side - border) for long, side in zip(sides, photo.shape[:2], strict=True)]
    # mirrored at the border so that transforms do not wrap around
    padded = np.pad((photo / 255.0) ** exponent, (*ends, (0, 0)), mode="symmetric")
    transfer, roughness = uft.ir2tf(kernel, sides), np.abs(uft.laplacian(2, sides)[0]) ** 2
    spectra = [np.conj(transfer) * uft.urfftn(padded[..., channel]) for channel in range(3)]
    for balance in balances:
        weight = 1 / (np.abs(transfer) ** 2 + balance * roughness)
        channels = [uft.uirfftn(spectrum * weight, shape=sides) for spectrum in spectra]
        restored = np.stack(channels, axis=-1)[border : border + photo.shape[0], border : border + photo.shape[1]]
        yield _to_pixels(np.clip(restored, 0, 1) ** (1 / exponent))


def _guided_filter(
    guide: NDArray[np.float32], image: NDArray[np.float32], radius: int, epsilon: float
) -> NDArray[np.float32]:
    """Edge-preserving smoothing of ``image`` by the grey ``guide``."""

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.boxFilter(values, -1, (2 * radius + 1,) * 2), np.float32)

    guide_mean, image_mean = mean(guide), mean(image)
    slope = (mean(guide * image) - guide_mean * image_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    return mean(slope) * guide + mean(image_mean - slope * guide_mean)
