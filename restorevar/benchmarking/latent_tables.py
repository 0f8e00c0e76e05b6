"""Tables of what the latent gives and what the detail path, from the scores of ``benchmarks/latent_and_detail.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from restorevar.datamodules.kinds import CLEAN_KIND

__all__ = ["ANOTHER", "FULL", "LatentTables", "latent_tables"]

FULL, ANOTHER = "fidelity 1", "fidelity 1, latent of another photo"
"""Methods whose difference is what the latent does."""


@dataclass(frozen=True)
class LatentTables:
    """Cells ready to print.

    Attributes:
        kinds: Headings of the columns: kinds of degradation, their mean, clean photos.
        gains: Method to its PSNR gain over the degraded input in dB; of the input and of clean photos the PSNR itself.
        ssims: Method to its SSIM.
        costs: Heading to what the latent of another photo costs, in dB.
    """

    kinds: list[str]
    gains: dict[str, list[str]]
    ssims: dict[str, list[str]]
    costs: dict[str, float]


def latent_tables(summary: Iterable[dict[str, Any]], methods: Sequence[str]) -> LatentTables:
    """The tables of some scores.

    Args:
        summary: Means of all methods, as files of scores have them: :meth:`Summary.as_dict` of the groups ``all`` and
            ``kind``.
        methods: Rows in their order.
    """
    found = {(row["method"], row["kind"], row["metric"]): row for row in summary}
    last = ("all", CLEAN_KIND)
    kinds = sorted(dict.fromkeys(kind for _, kind, _ in found), key=lambda kind: (kind in last, kind == CLEAN_KIND))
    heads = {kind: "mean" if kind == "all" else kind.replace("_", " ") for kind in kinds}

    def cells(metric: str, cell: Callable[[dict[str, Any]], str]) -> dict[str, list[str]]:
        return {method: [cell(found[method, kind, metric]) for kind in kinds] for method in methods}

    def gain(row: dict[str, Any]) -> str:
        itself = row["gain"] is None or row["kind"] == CLEAN_KIND
        return f"{row['mean']:.2f} dB" if itself else f"{row['gain']:+.2f}"

    return LatentTables(
        kinds=list(heads.values()),
        gains=cells("psnr", gain),
        ssims=cells("ssim", lambda row: f"{row['mean']:.3f}"),
        costs={
            head: found[FULL, kind, "psnr"]["mean"] - found[ANOTHER, kind, "psnr"]["mean"]
            for kind, head in heads.items()
        },
    )
