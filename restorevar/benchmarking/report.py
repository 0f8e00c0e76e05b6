"""Results of a benchmark as JSON, table and plot."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from restorevar.files import atomic_write

__all__ = ["Report", "Row"]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: What was run.
        batch: Photos at once.
        width: Photo width in pixels.
        height: Photo height in pixels.
        seconds: Repeats, for the whole batch; empty if derived or skipped.
        median: Seconds for the whole batch.
        peak_memory: Bytes; None where not measured.
        note: How it was derived, or why it was skipped.
    """

    name: str
    batch: int
    width: int
    height: int
    seconds: list[float] = field(default_factory=list)
    median: float | None = None
    peak_memory: int | None = None
    note: str = ""

    @property
    def pixels(self) -> int:
        """Pixels of one photo."""
        return self.width * self.height


@dataclass
class Report:
    """A whole run.

    Attributes:
        model: What was measured.
        device: Name of the device.
        precision: Number type.
        versions: Date, versions and settings.
        operations: Operations of one photo of the model's own size, by kind.
        rates: Operations a second reached by one product and one convolution in the same run.
        floor: Seconds of a photo's nominal operations at these rates.
        rows: Table of whole restorations, own model and peers.
        parts: Median seconds by part of the model.
        sizes: Photos of several sizes.
    """

    model: str
    device: str
    precision: str
    versions: dict[str, Any]
    operations: dict[str, float]
    rates: dict[str, float]
    floor: float
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    sizes: list[Row] = field(default_factory=list)

    @property
    def own(self) -> Row:
        """One photo of the model's own size."""
        return self.rows[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON, with what follows from it."""
        derived: dict[str, Any] = {}
        if self.own.median is not None:
            derived["over_floor"] = self.own.median / self.floor
            derived["operations_a_second"] = sum(self.operations.values()) / self.own.median
            derived["over_own_time"] = {
                f"{row.name}, batch {row.batch}": row.median / row.batch / self.own.median
                for row in self.rows
                if row.median is not None
            }
        return dataclasses.asdict(self) | {"derived": derived}

    def tables(self) -> Group:
        """For a terminal."""
        own = self.own.median
        whole = Table(title=f"{self.model}, {self.precision}, {self.device}")
        for column in ("restoration", "photo", "batch", "s", "photos/s", "over ours", "peak memory", "note"):
            whole.add_column(column, justify="left" if column in ("restoration", "note") else "right")
        for row in [*self.rows, *self.sizes]:
            known = row.median is not None
            over = row.median / row.batch / own if row.median and own and row in self.rows else None
            whole.add_row(
                row.name,
                f"{row.width}x{row.height}",
                str(row.batch),
                f"{row.median:.3f}" if known else "-",
                f"{row.batch / row.median:.2f}" if row.median else "-",
                f"{over:.2f}" if over else "",
                f"{row.peak_memory / 2**30:.2f} GiB" if row.peak_memory else "",
                row.note,
            )
        parts = Table(title="by part")
        parts.add_column("part")
        parts.add_column("ms", justify="right")
        parts.add_column("%", justify="right")
        for name, seconds in self.parts.items():
            parts.add_row(name, f"{seconds * 1e3:.1f}", f"{100 * seconds / sum(self.parts.values()):.0f}")
        cost = Table(title="against the machine")
        cost.add_column("")
        cost.add_column("", justify="right")
        for name, value in self.operations.items():
            cost.add_row(f"{name} of one photo", f"{value / 1e9:.0f} GFLOP")
        for name, value in self.rates.items():
            cost.add_row(f"{name.replace('_', ' ')} rate", f"{value / 1e9:.0f} GFLOP/s")
        cost.add_row("floor at these rates", f"{self.floor:.3f} s")
        if own:
            cost.add_row("ours over the floor", f"{own / self.floor:.2f}")
        return Group(whole, parts, cost)

    def write(self, folder: Path) -> list[Path]:
        """Writes ``benchmark.json`` and, with matplotlib installed, ``benchmark.png``.

        Args:
            folder: Created if needed.

        Returns:
            The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "benchmark.json"]
        with atomic_write(files[0]) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        if self.plot(folder / "benchmark.png"):
            files.append(folder / "benchmark.png")
        return files

    def plot(self, path: Path) -> bool:
        """Draws time against photo size; False without matplotlib or with nothing to draw."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        lines: dict[str, list[Row]] = {}
        for row in [*self.rows, *self.sizes]:
            if row.batch == 1 and row.median is not None:
                name = self.model if row is self.own or row in self.sizes else row.name
                lines.setdefault(name, []).append(row)
        if not self.sizes or not lines:
            return False
        largest = max(row.pixels for rows in lines.values() for row in rows)
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, rows in lines.items():
            rows = sorted(rows, key=lambda row: row.pixels)
            megapixels, seconds = [row.pixels / 1e6 for row in rows], [row.median or 0.0 for row in rows]
            (line,) = axes.loglog(megapixels, seconds, "o-", label=name)
            if len(rows) == 1 and rows[0].pixels < largest:
                factor = largest / rows[0].pixels
                extended = [megapixels[0], megapixels[0] * factor], [seconds[0], seconds[0] * factor]
                axes.loglog(*extended, "--", color=line.get_color(), label=f"{name}, extrapolated by pixels")
        axes.set_xlabel("photo (megapixels)")
        axes.set_ylabel("time (s)")
        axes.set_title(f"{self.precision}, {self.device}", fontsize=10)
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=8)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        return True
