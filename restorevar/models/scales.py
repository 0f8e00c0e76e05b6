"""The scale schedule: sides of the token maps from coarse to fine, and the tables that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from restorevar.errors import UserError

__all__ = ["PAPER_SCALES_256", "PAPER_SCALES_512", "ScaleSchedule"]

PAPER_SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PAPER_SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


class ScaleSchedule:
    """Sizes (height, width) of the K token maps, coarse to fine. Immutable and hashable.

    Args:
        sizes: One entry a scale: the side of a square map, or (height, width).

    Raises:
        UserError: If there is no scale, a side is below 1, or a scale is smaller than the one before it.
    """

    def __init__(self, sizes: Sequence[int | Sequence[int]]) -> None:
        pairs = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
        if not pairs or any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise UserError(f"scale schedule {list(sizes)} is not valid; expected sides of 1 or more, coarse to fine")
        if any(a[0] > b[0] or a[1] > b[1] for a, b in pairwise(pairs)):
            raise UserError(f"scale schedule {list(sizes)} shrinks; expected scales from coarse to fine")
        self.sizes: tuple[tuple[int, int], ...] = tuple((int(height), int(width)) for height, width in pairs)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.sizes)

    def __getitem__(self, scale: int) -> tuple[int, int]:
        return self.sizes[scale]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScaleSchedule) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash(self.sizes)

    def __repr__(self) -> str:
        return f"ScaleSchedule({self.to_list()})"

    def to_list(self) -> list[int | list[int]]:
        """The schedule as plain numbers: a side where the map is square, else [height, width]."""
        return [height if height == width else [height, width] for height, width in self.sizes]

    @property
    def finest(self) -> tuple[int, int]:
        """Size (height, width) of the last scale, which is the latent's size."""
        return self.sizes[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(height * width for height, width in self.sizes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of the first token of each scale in the flattened sequence."""
        return tuple(sum(self.lengths[:scale]) for scale in range(len(self)))

    @property
    def tokens(self) -> int:
        """Number of tokens T over all scales."""
        return sum(self.lengths)

    def scaled(self, finest: tuple[int, int]) -> ScaleSchedule:
        """The schedule stretched to another finest size (height, width)."""
        now = self.finest
        return ScaleSchedule(
            [[max(round(size[axis] * finest[axis] / now[axis]), 1) for axis in (0, 1)] for size in self.sizes]
        )

    def span(self, scale: int) -> slice:
        """Where the tokens of a scale lie in the flattened sequence."""
        return slice(self.starts[scale], self.starts[scale] + self.lengths[scale])

    @cached_property
    def scale_of_token(self) -> np.ndarray:
        """Scale index of each token, (T,) int64."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def positions(self) -> np.ndarray:
        """Place of each token on the finest grid, (T, 2) float64: (r, c) * s_K / s_k for cell (r, c) of scale k."""
        rows, columns = self.finest
        grids = []
        for height, width in self.sizes:
            row, column = np.meshgrid(
                np.arange(height) * (rows / height), np.arange(width) * (columns / width), indexing="ij"
            )
            grids.append(np.stack([row.ravel(), column.ravel()], axis=1))
        return np.concatenate(grids)

    def phi_index(self, phi_count: int) -> tuple[int, ...]:
        """Which of the shared residual convolutions each scale uses.

        The nearest of ``phi_count`` evenly spaced ticks to k / (K - 1). Ties are real (K = 10, k = 2 and 7) and are
        decided by float64 rounding in numpy, as in the published model; other arithmetic gives other tokens.

        Args:
            phi_count: Number of shared convolutions.
        """
        ticks = np.linspace(1 / 3 / phi_count, 1 - 1 / 3 / phi_count, phi_count)
        last = max(len(self) - 1, 1)
        return tuple(int(np.argmin(np.abs(ticks - scale / last))) for scale in range(len(self)))
