"""Training curves of one or more runs as CSV and PNG, from their TensorBoard events.

python scripts/training_curves.py runs/nano/stage1 runs/nano/stage2 --output curves

Writes ``curves.csv`` (run, tag, step, value), ``curves.png`` (one panel a run and group of tags) and ``runs.csv`` (run,
steps, hours, counted from the first to the last event of each start).
Needs matplotlib (extra ``bench``).
"""

import argparse
import csv
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from restorevar.errors import UserError
from restorevar.files import atomic_write

PLOTTED = ("train/loss", "val/loss", "val/psnr", "val/gain", "val/accuracy", "codebook/perplexity")

Rows = list[tuple[str, str, int, float]]


def read_curves(folders: list[Path]) -> tuple[Rows, dict[str, float]]:
    """All scalars of the runs: (run's name, tag, step, value), the last value where a step was logged twice.

    Args:
        folders: Runs' folders (``trainer.default_root_dir``).

    Returns:
        The scalars, and hours by the run's name.

    Raises:
        UserError: If a folder holds no scalars, or has the name of another one.
    """
    names = [folder.name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        same = " and ".join(str(folder) for folder in folders if folder.name == twice)
        raise UserError(f"{same} have one name, by which their curves are told apart; give one of them, or rename it")
    rows: Rows = []
    hours: dict[str, float] = {}
    for folder in folders:
        values: dict[tuple[str, int], float] = {}
        files = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
        for file in files:  # a resumed run has several
            events = EventAccumulator(str(file), size_guidance={"scalars": 0})
            events.Reload()
            times: list[float] = []
            for tag in events.Tags()["scalars"]:
                values |= {(tag, event.step): event.value for event in events.Scalars(tag)}
                times += [event.wall_time for event in events.Scalars(tag)]
            hours[folder.name] = hours.get(folder.name, 0.0) + (max(times) - min(times) if times else 0.0) / 3600
        if not values:
            raise UserError(
                f"{folder} holds no TensorBoard events with scalars; expected a run's folder (trainer.default_root_dir)"
            )
        rows += [(folder.name, tag, step, value) for (tag, step), value in sorted(values.items())]
    return rows, hours


def plot(rows: Rows, path: Path) -> None:
    """One panel a run and group of tags, linear axes, thin raw values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for run, tag, step, value in rows:
        for group in PLOTTED:
            if tag.startswith(group):
                curves.setdefault((run, group), {}).setdefault(tag, []).append((step, value))
    columns = 3
    height = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, ((run, group), tags) in zip(axes.flat, curves.items(), strict=False):
        for tag, points in tags.items():
            label = tag.removeprefix(group).lstrip("_/") or tag
            axis.plot(*zip(*points, strict=True), linewidth=1, label=label)
        axis.set_title(f"{run}: {group}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if len(tags) > 1:
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Training curves as CSV and PNG.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path(), help="folder to write to")
    arguments = parser.parse_args()
    try:
        rows, hours = read_curves(arguments.runs)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    steps = {name: max(step for run, _, step, _ in rows if run == name) + 1 for name in {row[0] for row in rows}}
    tables = {
        "curves.csv": [("run", "tag", "step", "value"), *((*row[:3], f"{row[3]:.5g}") for row in rows)],
        "runs.csv": [("run", "steps", "hours"), *((run, steps[run], f"{time:.2f}") for run, time in hours.items())],
    }
    for name, lines in tables.items():
        with atomic_write(arguments.output / name) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    with atomic_write(arguments.output / "curves.png") as temporary:
        plot(rows, temporary)


if __name__ == "__main__":
    main()
