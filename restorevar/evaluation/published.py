"""Scores that others have published, to stand beside ours under the same protocol (`paper`)."""

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PUBLISHED_DATASETS", "PUBLISHED_MEMBERS", "PUBLISHED_METRICS", "PublishedRow"]

SOURCE = "project page of RestoreVAR (arXiv:2505.18047), table of the five training sets"

PUBLISHED_DATASETS: dict[str, str] = {
    "RESIDE": "haze",
    "Snow100K": "snow",
    "Rain13K": "rain",
    "LOLv1": "low_light",
    "GoPro": "motion_blur",
}
"""Data sets of the published table in its order, and their kinds."""

PUBLISHED_MEMBERS: dict[str, tuple[str, ...]] = {
    "RESIDE": ("RESIDE", "SOTS-indoor", "SOTS-outdoor"),
    "Snow100K": ("Snow100K", "Snow100K-S", "Snow100K-M", "Snow100K-L"),
    "Rain13K": ("Rain13K", "Rain100H", "Rain100L", "Test100", "Test1200", "Test2800"),
    "LOLv1": ("LOLv1",),
    "GoPro": ("GoPro",),
}
"""Test sets that are averaged, image by image, for our cell of a column."""

PUBLISHED_METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class PublishedRow:
    """One row of the published table.

    Attributes:
        method: Name of the method.
        note: What kind of method it is.
        scores: Data set to (PSNR in dB, SSIM, LPIPS).
        source: Where the figures were read.
    """

    method: str
    note: str
    scores: dict[str, tuple[float, float, float]]
    source: str = SOURCE


def _row(method: str, note: str, *scores: tuple[float, float, float]) -> PublishedRow:
    return PublishedRow(method, note, dict(zip(PUBLISHED_DATASETS, scores, strict=True)))


PUBLISHED: tuple[PublishedRow, ...] = (
    _row(
        "PromptIR",
        "regression",
        (32.02, 0.952, 0.013),
        (31.98, 0.924, 0.115),
        (29.56, 0.888, 0.087),
        (22.89, 0.847, 0.296),
        (27.21, 0.817, 0.250),
    ),
    _row(
        "Diff-Plugin",
        "latent diffusion",
        (23.23, 0.765, 0.091),
        (21.02, 0.611, 0.196),
        (21.71, 0.617, 0.169),
        (19.38, 0.713, 0.195),
        (21.76, 0.633, 0.217),
    ),
    _row(
        "AutoDIR",
        "latent diffusion",
        (24.48, 0.780, 0.081),
        (19.00, 0.515, 0.347),
        (23.02, 0.642, 0.162),
        (19.43, 0.766, 0.135),
        (23.55, 0.700, 0.168),
    ),
    _row(
        "PixWizard",
        "latent diffusion",
        (21.28, 0.738, 0.142),
        (21.24, 0.594, 0.206),
        (21.38, 0.596, 0.180),
        (15.84, 0.629, 0.305),
        (20.49, 0.602, 0.223),
    ),
    _row(
        "RestoreVAR (published)",
        "visual autoregression",
        (24.67, 0.821, 0.074),
        (24.05, 0.713, 0.156),
        (23.97, 0.700, 0.153),
        (21.72, 0.782, 0.126),
        (23.96, 0.737, 0.167),
    ),
)
"""Rows in the published order."""
