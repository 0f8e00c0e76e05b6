"""Fails if restoration has become more than a tenth slower than the committed baseline.

Processor time of one thread, so that other programs disturb little, divided by that of a matrix product measured in
turns with it; medians of five. Other processors have other ratios: write a baseline of your own.

    python benchmarks/regression.py            # compare
    python benchmarks/regression.py --write    # after a change that is meant to move it
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from restorevar.benchmarking.benchmark import describe_device
from restorevar.memory import keep_freed_memory, request_large_pages
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TokenizerConfig, TransformerConfig

BASELINE = Path(__file__).parent / "results" / "baseline.json"
TOLERANCE = 1.10
PRODUCTS = 40  # a single one is too short for a steady time
CPU = torch.device("cpu")


def medium_model() -> RestoreVAR:
    """The published architecture, narrower and at 256 px: a few seconds of one thread a photo.

    The tokenizer is as wide as it must be for its convolutions to take the path that large ones take.
    """
    torch.manual_seed(0)
    config = RestoreVARConfig(
        scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        tokenizer=TokenizerConfig(base_channels=128),
        transformer=TransformerConfig(depth=4, width=256, heads=4, gain_init=1.0),
        refiner=RefinerConfig(depth=2),
    )
    return RestoreVAR(config).eval()


def measure(repeats: int) -> dict[str, float]:
    """Times over the time of a 1024-cubed product of the same number type."""
    torch.set_num_threads(1)
    model, ratios = medium_model(), {}
    photo = torch.rand(1, 3, *model.image_size) * 2 - 1
    for dtype in (torch.float32, torch.bfloat16):
        model.set_precision(dtype)
        matrix = torch.randn(1024, 1024).to(dtype)
        calls: dict[str, Callable[[], Any]] = {
            "product": lambda matrix=matrix: [matrix @ matrix for _ in range(PRODUCTS)],
            "generate": lambda: model.generate(photo),
            "tokenizer": lambda: model.tokenizer.decode(model.tokenizer.encode(model.prepared(photo))),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        with torch.no_grad():
            for repeat in range(-1, repeats):
                for name, call in calls.items():
                    began = time.process_time()
                    call()
                    if repeat >= 0:
                        seconds[name].append(time.process_time() - began)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name in ("generate", "tokenizer"):
            ratios[f"{name}, {str(dtype).removeprefix('torch.')}"] = PRODUCTS * medians[name] / medians["product"]
    return ratios


def compare(found: dict[str, float], baseline: dict[str, float]) -> dict[str, list[str]]:
    """The names that fail, by what is wrong with them: nothing where all is well."""
    wrong = {
        f"slower by more than {TOLERANCE - 1:.0%}": [
            name for name in found if name in baseline and found[name] > TOLERANCE * baseline[name]
        ],
        "in the baseline only": sorted(set(baseline) - set(found)),
        "not in the baseline": sorted(set(found) - set(baseline)),
    }
    return {what: names for what, names in wrong.items() if names}


def main() -> int:
    """Measures, prints, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    request_large_pages()  # as the command line does
    keep_freed_memory()
    found = measure(arguments.repeats)
    if arguments.write:
        BASELINE.parent.mkdir(parents=True, exist_ok=True)
        record = {"device": describe_device(CPU), "torch": torch.__version__, "over_product": found}
        BASELINE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"written: {BASELINE}")
        return 0
    record = json.loads(BASELINE.read_text(encoding="utf-8"))
    if record["device"] != describe_device(CPU):
        print(f"note: the baseline is of {record['device']}, this is {describe_device(torch.device('cpu'))}")
    for name, value in found.items():
        before = record["over_product"].get(name)
        print(
            f"{name:24} {value:8.1f} products" + (f", baseline {before:.1f} ({value / before:.2f})" if before else "")
        )
    wrong = compare(found, record["over_product"])
    for what, names in wrong.items():
        print(f"{what}: {', '.join(names)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
