"""``restorevar benchmark``: speed, memory and cost of a model against the machine's limits and against peers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from restorevar.devices import choose_device, choose_precision
from restorevar.errors import UserError
from restorevar.memory import keep_freed_memory

if TYPE_CHECKING:
    from restorevar.benchmarking.peers import Peer

__all__ = ["benchmark"]


def benchmark(
    model: str = "restorevar-nano",
    output: Path = Path("benchmark"),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "float32", "bfloat16", "both"] = "auto",
    repeats: int = 5,
    batch: list[int] | None = None,
    size: list[str] | None = None,
    peer: list[Literal["diffusion", "plain"]] | None = None,
    compile: bool = False,
) -> None:
    """Measures latency, throughput, memory and time by part, beside the rates that the machine reaches in the same run.

    Everything is timed in turns, so that a busy machine is unfair to nobody; medians count. Writes benchmark.json and,
    with matplotlib, benchmark.png.

    Args:
        model: Name of a shipped model, a model folder, a hub id, or paper: the paper's size with random weights.
        output: Folder for the results.
        device: auto is a GPU if there is one.
        precision: auto is bfloat16 where the device computes it natively, else float32. both is float32, then bfloat16,
            with results in a subfolder each.
        repeats: Rounds.
        batch: Batch sizes at the model's own size besides 1, such as [4,8].
        size: Sizes of photos to restore in tiles, such as [512x512,1024x1024,1920x1080,3840x2160].
        peer: What to compare with at 512 px. diffusion: latent diffusion of Stable Diffusion 1.5's size with random
            weights (extra bench). plain: the published algorithm read plainly (in a checkout).
        compile: Measure torch.compile too; its first call takes minutes.
    """
    sizes = [parse_size(word) for word in size or []]
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1 (5 for a median worth quoting)")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; expected a folder for the results, there already or not")
    for count in batch or []:
        if count < 1:
            raise UserError(f"batch {count}; expected a positive number")
    from restorevar.benchmarking.benchmark import paper_model, run_benchmark
    from restorevar.benchmarking.peers import check_diffusion, check_plain, load_plain
    from restorevar.models import RestoreVAR

    keep_freed_memory()
    place = choose_device(device)
    network = paper_model() if model == "paper" else RestoreVAR.from_pretrained(model)
    if network.transformer is None:
        raise UserError(f"{model} holds a tokenizer only; expected a model that went through stage 2 as well")
    peers: list[Peer] = list(peer or [])
    if "plain" in peers:
        check_plain(network)
        load_plain()
    if "diffusion" in peers:
        check_diffusion()
    console = Console()
    names = ("float32", "bfloat16")
    folders = {name: output / name for name in names} if precision == "both" else {precision: output}
    for folder in folders.values():  # before anything is measured for nothing
        folder.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        network.set_precision(choose_precision(name, place)).to(place)
        report = run_benchmark(
            network, Path(model).name, repeats=repeats, batches=batch or (), sizes=sizes, peers=peers, compiled=compile
        )
        console.print(report.tables())
        for path in report.write(folder):
            console.print(f"written: {path}")


def parse_size(word: str) -> tuple[int, int]:
    """Width and height of ``WIDTHxHEIGHT``.

    Raises:
        UserError: If it is something else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", word)
    if not found or not int(found[1]) or not int(found[2]):
        raise UserError(f"size '{word}'; expected WIDTHxHEIGHT in pixels, such as 1920x1080")
    return int(found[1]), int(found[2])
