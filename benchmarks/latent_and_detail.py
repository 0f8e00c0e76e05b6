"""What the latent gives and what the detail path gives: scores of a model with its parts exchanged.

    python benchmarks/latent_and_detail.py MODEL PHOTOS [--severities 0.5] [--limit 24] [--regression FILE]

Clean photos are degraded in a fixed way and restored as users restore them (protocol native)

* at fidelity 0 (the latent alone) to 1,
* at fidelity 1 with tokens and latent of ANOTHER photo of the same kind: the detail path still sees the right one,
* at fidelity 1 with the latent zeroed,
* by a regression network of the detail path's size (see regression_network.py), in the same tiles.

Writes OUTPUT.json (all scores, and means with 95 % intervals) and OUTPUT.md (tables of the gain over the degraded input
and of SSIM for each kind, and of clean photos passed through).
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from regression_network import RegressionNetwork, count, load
from torch import Tensor

import restorevar
from restorevar import RestoreVAR
from restorevar.benchmarking.exchange import LatentExchange, Parts, Variant
from restorevar.benchmarking.latent_tables import ANOTHER, latent_tables
from restorevar.datamodules import FixedDegradations
from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.kinds import CLEAN_KIND
from restorevar.datamodules.sources import Record
from restorevar.errors import UserError
from restorevar.evaluation.protocol import PROTOCOLS
from restorevar.evaluation.scores import INPUT_METHOD, Role, ScoreTable, Summary, summarize, write_json
from restorevar.files import atomic_write
from restorevar.models.pretrained import find_folder, weights_digest
from restorevar.restoration.photo import read_rgb
from restorevar.restoration.restorer import Restorer

Pixels = NDArray[np.uint8]

KINDS = ("haze", "rain", "snow", "low_light", "motion_blur")
FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
ZERO, REGRESSION = "fidelity 1, latent zeroed", "regression network"


@dataclass
class Peer:
    """A regression network in the shape that `Restorer` wants."""

    network: RegressionNetwork
    image_size: tuple[int, int]
    device: torch.device

    def generate(self, degraded: Tensor, fidelity: float | None = None) -> Any:
        """See `Variant.generate`."""
        return SimpleNamespace(image=((self.network(degraded) + 1) / 2).clamp(0, 1))


class Bench:
    """All rows of the table for one photo after the other.

    Args:
        model: A model with a detail path.
        regression: A peer.
    """

    def __init__(self, model: RestoreVAR, regression: RegressionNetwork | None = None) -> None:
        parts = Parts(model)
        self._rows: dict[str, Callable[[Pixels, Pixels], Pixels]] = {
            f"fidelity {w:g}": alone(Restorer(Variant(parts), fidelity=w)) for w in FIDELITIES
        }
        self._rows[ANOTHER] = LatentExchange(parts).restore
        self._rows[ZERO] = alone(Restorer(Variant(parts, torch.zeros_like), fidelity=1.0))
        if regression is not None:
            peer = Peer(regression.to(model.device), model.image_size, model.device)
            self._rows[REGRESSION] = alone(Restorer(peer))

    def restore(self, degraded: Pixels, another: Pixels) -> dict[str, Pixels]:
        """Row to restored photo.

        Args:
            degraded: (H, W, 3).
            another: A degraded photo of the same kind; resized where its size differs.
        """
        return {name: row(degraded, another) for name, row in self._rows.items()}


def alone(restorer: Restorer) -> Callable[[Pixels, Pixels], Pixels]:
    """Restores a photo, whatever the other one is."""
    return lambda degraded, another: restorer.restore(degraded)


def pair(record: Record) -> tuple[Pixels, Pixels]:
    """Degraded and clean photo."""
    clean = read_rgb(Path(record.path))
    if record.kind == CLEAN_KIND or record.kind is None:
        return clean, clean
    return degrade(clean, record.kind, record.severity or 0.0, record.seed)[0], clean


def score(bench: Bench, folder: Path, kind: str, severities: list[float], limit: int | None) -> ScoreTable:
    """Scores of all rows for the photos of a folder in one kind.

    Raises:
        UserError: There is one photo only.
    """
    source = FixedDegradations([str(folder.resolve())], [kind], severities, limit=limit)
    records = source.collect(Path()).records
    if len(records) == len(severities):
        raise UserError(f"{folder}: one photo; expected two or more, since latents are exchanged between photos")
    made = functools.lru_cache(2 * len(severities))(lambda index: pair(records[index]))
    table = ScoreTable(("psnr", "ssim"))
    for index, record in enumerate(records):
        degraded, clean = made(index)
        another = made((index + len(severities)) % len(records))[0]  # of the same severity
        for method, restored in {INPUT_METHOD: degraded, **bench.restore(degraded, another)}.items():
            role: Role = "input" if method == INPUT_METHOD else "rival" if method == REGRESSION else "model"
            images = [torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in (restored, clean)]
            labels = [kind], [record.dataset], [record.path]
            table.update(*images, *labels, method=method, role=role, severity=[record.severity or 0.0])
    return table


def markdown(summaries: list[Summary], methods: list[str], facts: dict[str, str]) -> str:
    """What was found as two tables and a sentence."""
    tables = latent_tables([summary.as_dict() for summary in summaries], methods)

    def table(rows: dict[str, list[str]]) -> list[str]:
        lines = ["| | " + " | ".join(tables.kinds) + " |", "|---|" + "---|" * len(tables.kinds)]
        return lines + [f"| {method} | " + " | ".join(cells) + " |" for method, cells in rows.items()]

    costs = ", ".join(f"{kind} {cost:.2f} dB" for kind, cost in tables.costs.items())
    lines = [
        *(f"{name}: {text}  " for name, text in facts.items()),
        "",
        f"The latent of another photo costs: {costs}.",
        "",
        "PSNR gain over the degraded input (dB); of the input and of clean photos the PSNR itself:",
        "",
        *table(tables.gains),
        "",
        "SSIM:",
        "",
        *table(tables.ssims),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="shipped name, model folder or hub id")
    parser.add_argument("photos", type=Path, help="folder of clean photos that the model was not trained on")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--severities", nargs="+", type=float, default=[0.5])
    parser.add_argument("--limit", type=int, help="take the first so many photos only")
    parser.add_argument("--regression", type=Path, help="file of regression_network.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("latent_and_detail"), help="without ending")
    options = parser.parse_args()
    try:
        measure(options)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def measure(options: argparse.Namespace) -> None:
    """Scores all kinds and clean photos, and writes both files."""
    begun = time.monotonic()
    model = RestoreVAR.from_pretrained(options.model).to(options.device)
    if model.transformer is None or model.detail is None:
        raise UserError(f"{options.model} has no detail path; expected a model that went through stage 4")
    folder = find_folder(options.model)
    facts = {"model": f"{folder.name}, {weights_digest(folder)}"}
    regression = None
    if options.regression is not None:
        regression, progress = load(options.regression)
        size = f"{count(regression) / 1e6:.2f} M parameters"
        facts[REGRESSION] = f"{size}, {progress.steps} steps, {progress.seconds / 60:.0f} min"
    bench = Bench(model, regression)
    scores, summaries = [], []
    for kinds, severities in ((options.kinds, options.severities), ([CLEAN_KIND], [0.0])):
        part = []
        for kind in kinds:
            part += score(bench, options.photos, kind, severities, options.limit).scores
            print(f"{kind}: {len(scores) + len(part)} scores after {time.monotonic() - begun:.0f} s", flush=True)
        scores += part
        groups = ("all", "kind") if kinds != [CLEAN_KIND] else ("kind",)
        summaries += [summary for summary in summarize(part) if summary.group in groups]
    methods = list(dict.fromkeys(score.method for score in scores))
    severities = ", ".join(f"{severity:g}" for severity in options.severities)
    facts |= {
        "photos": f"{len({score.path for score in scores})} of {options.photos.name}, severities {severities}",
        "protocol": f"native: {PROTOCOLS['native'].describe()}",
        "versions": f"restorevar {restorevar.__version__}, torch {torch.__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    write_json(Path(f"{options.output}.json"), scores, summaries, {"run": facts, "methods": methods})
    with atomic_write(Path(f"{options.output}.md")) as temporary:
        temporary.write_text(markdown(summaries, methods, facts), encoding="utf-8")
    print(f"{options.output}.md and .json after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
