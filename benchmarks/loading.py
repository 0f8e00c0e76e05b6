"""How long one training crop takes, decoding included, on one thread.

    python benchmarks/loading.py FOLDER [FOLDER ...] [--size 256] [--crops 300] [--filter area]

Prints milliseconds of processor time a crop, by kind and on average over the training mix, decoding and resizing
apart. Processor time, since other work on the machine would otherwise be measured too.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from typing import Any

import cv2

from restorevar.datamodules import CleanPhotos, RestorationDataModule
from restorevar.datamodules import dataset as steps


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--crops", type=int, default=300)
    parser.add_argument("--filter", choices=["lanczos", "area"], default="area")
    parser.add_argument("--scales", type=float, nargs=2, default=[1.0, 2.5])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    data = RestorationDataModule(
        train=[CleanPhotos(options.folders)],
        image_size=options.size,
        batch_size=1,
        clean_share=0.1,
        resize_short_side=tuple(options.scales),
        resize_filter=options.filter,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    draws = list(islice(loader.epoch_sampler, options.crops))
    dataset: Any = loader.dataset
    for draw in draws[:20]:
        dataset[draw]

    spent: dict[str, float] = defaultdict(float)
    for name in ("read_image", "resize"):
        setattr(steps, name, timed(getattr(steps, name), name, spent))
    by_kind: dict[str, list[float]] = defaultdict(list)
    for draw in draws:
        start = time.thread_time()
        kind = dataset[draw]["kind"]
        by_kind[kind].append(time.thread_time() - start)
    times = [seconds for each in by_kind.values() for seconds in each]
    print(f"{len(times)} crops of {options.size} px, short side times {options.scales[0]} to {options.scales[1]}")
    for kind, each in sorted(by_kind.items()):
        print(f"{kind:12} {1e3 * sum(each) / len(each):6.2f} ms")
    for name, seconds in spent.items():
        print(f"  of it {name:10} {1e3 * seconds / len(times):6.2f} ms")
    print(f"average      {1e3 * sum(times) / len(times):6.2f} ms")


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """`function`, its processor time added up."""

    def call(*args: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*args)
        finally:
            spent[name] += time.thread_time() - start

    return call


if __name__ == "__main__":
    main()
