"""Fails if restoration has become more than a tenth slower than the committed baseline.

Times are divided by the time of a matrix product measured in turns with them, so that another day or a busier machine
moves both; medians of five. Other processors have other ratios: write a baseline of your own.

    python benchmarks/regression.py            # compare
    python benchmarks/regression.py --write    # after a change that is meant to move it
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import torch

from restorevar.benchmarking.benchmark import describe_device
from restorevar.benchmarking.timing import interleave
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TokenizerConfig, TransformerConfig

BASELINE = Path(__file__).parent / "results" / "baseline.json"
TOLERANCE = 1.10


def medium_model() -> RestoreVAR:
    """The published architecture at 256 px and a quarter of the channels: half a second a photo on two cores."""
    torch.manual_seed(0)
    config = RestoreVARConfig(
        scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        tokenizer=TokenizerConfig(base_channels=64),
        transformer=TransformerConfig(depth=8, width=512, heads=8, gain_init=1.0),
        refiner=RefinerConfig(depth=4),
    )
    return RestoreVAR(config).eval()


def measure(repeats: int) -> dict[str, float]:
    """Times over the time of a 1024-cubed product of the same number type."""
    device, ratios = torch.device("cpu"), {}
    model = medium_model()
    photo = torch.rand(1, 3, *model.image_size) * 2 - 1
    for dtype in (torch.float32, torch.bfloat16):
        model.set_precision(dtype)
        matrix = torch.randn(1024, 1024).to(dtype)
        calls = {
            "product": lambda matrix=matrix: [matrix @ matrix for _ in range(20)],
            "generate": lambda: model.generate(photo),
            "tokenizer": lambda: model.tokenizer.decode(model.tokenizer.encode(model.prepared(photo))),
        }
        medians = {name: timed.median for name, timed in interleave(calls, repeats, device, warm_up=2).items()}
        for name in ("generate", "tokenizer"):
            ratios[f"{name}, {str(dtype).removeprefix('torch.')}"] = medians[name] / medians["product"] * 20
    return ratios


def compare(found: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """The names that have become slower than tolerated, or are missing on one side."""
    changed = sorted(set(found) ^ set(baseline))
    return changed + [name for name in found if name in baseline and found[name] > TOLERANCE * baseline[name]]


def main() -> int:
    """Measures, prints, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    if arguments.write:
        BASELINE.parent.mkdir(parents=True, exist_ok=True)
        record = {"device": describe_device(torch.device("cpu")), "torch": torch.__version__, "over_product": found}
        BASELINE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"written: {BASELINE}")
        return 0
    record = json.loads(BASELINE.read_text(encoding="utf-8"))
    if record["device"] != describe_device(torch.device("cpu")):
        print(f"note: the baseline is of {record['device']}, this is {describe_device(torch.device('cpu'))}")
    for name, value in found.items():
        before = record["over_product"].get(name)
        print(
            f"{name:24} {value:8.1f} products" + (f", baseline {before:.1f} ({value / before:.2f})" if before else "")
        )
    slower = compare(found, record["over_product"])
    if slower:
        print(f"slower by more than {TOLERANCE - 1:.0%}: {', '.join(slower)}")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
