"""Fine-tuning in minutes: what it gains on held-out photos and what it costs elsewhere.

    python benchmarks/finetune.py --photos TRAINING_PHOTOS --held-out OTHER_PHOTOS --output runs/finetune

Two cases of docs/finetune.md, each by the documented commands: ``pairs`` (20 pairs of faded, grainy prints) and
``degradation`` (dust, the example of docs/degradations.md, on as many photos). Writes ``<case>.md``, a table of mean
PSNR on the held-out photos, before and after, and the wall time of the training.
"""

import argparse
import csv
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from restorevar.cli import main as restorevar
from restorevar.datamodules.sources import list_photos
from restorevar.errors import UserError
from restorevar.evaluation.scores import INPUT_METHOD, MODEL_METHOD
from restorevar.files import atomic_write
from restorevar.restoration.photo import read_rgb

ROOT = Path(__file__).parents[1]
CASES = ("pairs", "degradation")
TRAIN, VAL = 20, 4
"""Photos to train on and to validate with."""


def faded(photo: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """An old print: little contrast, a yellow cast, grain. None of the model's own kinds."""
    random = np.random.default_rng(seed)
    contrast, grain = random.uniform(0.4, 0.7), random.uniform(0.03, 0.08)
    paper = np.array([0.85, 0.78, 0.6]) * random.uniform(0.9, 1.1)
    noise = random.normal(0, grain, photo.shape)
    values = paper + contrast * (photo / 255 - 0.8) + noise
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def prepare(case: str, photos: Sequence[Path], held_out: Sequence[Path], folder: Path) -> None:
    """Lays the photos out as the case's configuration expects them, numbered: in several folders names come again.

    Args:
        case: One of ``CASES``.
        photos: Photos to train on, then those to validate with.
        held_out: Photos to test with.
        folder: Where to.
    """
    parts = {"train": photos[:TRAIN], "val": photos[TRAIN:], "test": held_out}
    for part, files in parts.items():
        for seed, file in enumerate(files):
            name = f"{seed:03d}-{file.stem}"
            if case == "degradation":
                copy = folder / part / f"{name}{file.suffix}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                continue
            photo = read_rgb(file)
            for side, pixels in {"degraded": faded(photo, seed), "clean": photo}.items():
                with atomic_write(folder / part / side / f"{name}.png") as temporary:
                    Image.fromarray(pixels).save(temporary)
    if case == "degradation":
        page = (ROOT / "docs" / "degradations.md").read_text(encoding="utf-8")
        match = re.search(r'```python title="my_package/dust.py"\n(.*?)```', page, re.DOTALL)
        assert match is not None
        (folder / "my_package").mkdir(exist_ok=True)
        (folder / "my_package" / "dust.py").write_text(match[1], encoding="utf-8")
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def run(words: Sequence[str | Path]) -> None:
    """One command of the package; leaves if it fails."""
    if code := restorevar([str(word) for word in words]):
        raise SystemExit(code)


def mean_psnr(folder: Path) -> dict[tuple[str, str], float]:
    """Mean PSNR of each kind and method of a test run."""
    values: dict[tuple[str, str], list[float]] = {}
    with (folder / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values.setdefault((row["kind"], row["method"]), []).append(float(row["psnr"]))
    return {key: float(np.mean(found)) for key, found in values.items()}


def finetune(
    case: str, photos: Sequence[Path], held_out: Sequence[Path], output: Path, model: str, options: Sequence[str] = ()
) -> str:
    """Measures, trains, measures again.

    Args:
        case: One of ``CASES``.
        photos: Photos to train on, then those to validate with.
        held_out: Photos to test with.
        output: Where everything goes.
        model: What to start from.
        options: More options of the pipeline.

    Returns:
        The table, which is also in ``<output>/<case>.md``.
    """
    data, runs, overlay = output / f"{case}-data", output / case, ROOT / "configs" / "finetune" / f"{case}.yaml"
    prepare(case, photos, held_out, data)
    pipeline = ["pipeline", "--config", ROOT / "configs" / "finetune" / "pipeline.yaml", "--overlay", overlay]
    pipeline += ["--output", runs, "--data.root", data, f"--transformer.model.initial_model={model}", *options]
    started = time.monotonic()
    run(pipeline)
    minutes = (time.monotonic() - started) / 60
    scores = {}
    for name, scored in {"before": model, "after": runs / "gate" / "model"}.items():
        words = ["test", "--config", ROOT / "configs" / "test.yaml", "--config", overlay, "--data.root", data]
        words += ["--model.model", scored, "--model.metrics=[psnr]", "--model.baselines=[]"]
        run([*words, f"--trainer.default_root_dir={runs / name}"])
        scores[name] = mean_psnr(runs / name)
    lines = ["| | degraded | before | after | change |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(kind for kind, _ in scores["before"]):
        given = scores["before"][kind, INPUT_METHOD]
        before, after = (scores[name][kind, MODEL_METHOD] for name in ("before", "after"))
        lines.append(f"| {kind} | {given:.1f} | {before:.1f} | {after:.1f} | {after - before:+.1f} |")
    table = "\n".join([*lines, "", f"Training: {minutes:.1f} minutes.", ""])
    with atomic_write(output / f"{case}.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    return table


def choose_photos(folder: Path, count: int) -> list[Path]:
    """So many photos of a folder, evenly spread over its names.

    Raises:
        UserError: If it holds fewer.
    """
    files = list_photos(folder)
    if len(files) < count:
        raise UserError(f"{folder} holds {len(files)} photos; expected {count} or more")
    return [files[index * len(files) // count] for index in range(count)]


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description="Fine-tuning in minutes.")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of photos to test with")
    parser.add_argument("--count", type=int, default=8, help="photos to test with")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--model", default="restorevar-nano")
    parser.add_argument("--case", choices=CASES, help="one of the two; both if not given")
    arguments = parser.parse_args()
    try:
        photos, held_out = (
            choose_photos(*chosen)
            for chosen in ((arguments.photos, TRAIN + VAL), (arguments.held_out, arguments.count))
        )
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    for case in [arguments.case] if arguments.case else CASES:
        print(case, finetune(case, photos, held_out, arguments.output, arguments.model), sep="\n")


if __name__ == "__main__":
    main()
