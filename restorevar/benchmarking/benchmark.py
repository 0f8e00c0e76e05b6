"""One run of all measurements."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import restorevar
from restorevar import memory
from restorevar.benchmarking.cost import Rates, count, rate_calls
from restorevar.benchmarking.parts import measure_parts
from restorevar.benchmarking.peers import UNET_PARAMETERS, Peer, check_plain, peer_calls
from restorevar.benchmarking.process import CallsElsewhere
from restorevar.benchmarking.report import Report, Row
from restorevar.benchmarking.timing import available_memory, interleave, peak_memory
from restorevar.errors import UserError
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TransformerConfig

__all__ = ["paper_model", "run_benchmark"]

DIFFUSION_STEPS = (20, 50)
GIBIBYTE = 2**30

log = logging.getLogger(__name__)


def paper_model(seed: int = 0) -> RestoreVAR:
    """A model of the paper's size with random weights, whose cross-attention is not silent."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        config = RestoreVARConfig(transformer=TransformerConfig(gain_init=1.0), refiner=RefinerConfig())
        return RestoreVAR(config).eval()
    finally:
        torch.random.set_rng_state(state)


def describe_device(device: torch.device) -> str:
    """Name of the processor or GPU, with the number of threads for the first."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, Any]:
    """Date, versions and settings that move times."""
    return {
        "date": datetime.date.today().isoformat(),
        "restorevar": restorevar.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "large_pages": os.environ.get(memory.LARGE_PAGES) == "1",
        "freed_memory_kept": memory.freed_memory_kept,
    }


def run_benchmark(
    model: RestoreVAR,
    name: str,
    *,
    repeats: int = 5,
    batches: Sequence[int] = (1,),
    sizes: Sequence[tuple[int, int]] = (),
    peers: Sequence[Peer] = (),
    compiled: bool = False,
    rate_side: int = 4096,
) -> Report:
    """Measures one model, in the precision and on the device that it has.

    Args:
        model: The model.
        name: What to call it.
        repeats: Rounds of each measurement; medians count.
        batches: Batch sizes at the model's own size; 1 is always measured.
        sizes: (width, height) of photos to restore in tiles; one repeat each.
        peers: What to compare with, at 512 x 512 pixels.
        compiled: Adds a row for ``torch.compile``, with the time it took to warm up.
        rate_side: Side of the matrices whose product gives the machine's rate.

    Raises:
        UserError: If a peer cannot be had or cannot read the model, or ``repeats`` is not positive.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1 (5 for a median worth quoting)")
    if "plain" in peers:
        check_plain(model)
    device, dtype = model.device, model.dtype
    cost = count(model)
    height, width = model.image_size
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, height, width, generator=generator).to(device) * 2 - 1

    log.info("one photo, peers, and the machine's rates")
    before = _memory_in_use(device)
    own_peak = peak_memory(lambda: model.generate(photo), device)
    own: dict[str, Callable[[], Any]] = {name: lambda: model.generate(photo)}
    notes: dict[str, str] = {}
    skipped: list[Row] = []
    if device.type == "cuda":
        from restorevar.models.capture import CapturedGeneration

        captured = CapturedGeneration(model)
        own[f"{name}, one CUDA graph"] = lambda: captured(photo)
    if compiled:
        fast = torch.compile(model.generate)
        took = interleave({"": lambda: fast(photo)}, 1, device, warm_up=0)[""].median
        own[f"{name}, compiled"] = lambda: fast(photo)
        notes[f"{name}, compiled"] = f"first call {took:.1f} s (compiled code is cached on disk)"
    machine = rate_calls(device, dtype, side=rate_side)
    with _peer_calls(peers, model, own_peak, skipped) as others:
        # a model's folder may be called anything, a peer's or a rate's name as well
        calls: dict[tuple[str, str], Callable[[], Any]] = {("own", row): call for row, call in own.items()}
        calls |= {("peer", row): call for row, call in others.items()}
        calls |= {("rate", rate): part.call for rate, part in machine.items()}
        measured = interleave(calls, repeats, device)
        calls.clear()
    rates = Rates(**{rate: part.operations / measured["rate", rate].median for rate, part in machine.items()})
    machine.clear()
    own.clear()
    report = Report(
        model=name,
        device=describe_device(device),
        precision=str(dtype).removeprefix("torch."),
        versions=versions(),
        operations={"convolutions": cost.convolutions, "matrix products": cost.products},
        rates=dataclasses.asdict(rates),
        floor=rates.floor(cost),
    )
    diffusion: dict[str, float] = {}
    for (group, row), timed in measured.items():
        if group == "peer" and row.startswith("diffusion "):
            diffusion[row.removeprefix("diffusion ")] = timed.median
        elif group != "rate":
            note = notes.get(row, "") if group == "own" else ""
            report.rows.append(Row(row, 1, width, height, timed.seconds, timed.median, note=note))
    report.rows[0].peak_memory = own_peak
    if diffusion:
        ends = diffusion["encoder"] + diffusion["decoder"]
        note = f"encoder and decoder {ends:.2f} s, a step {diffusion['step']:.2f} s"
        for steps in DIFFUSION_STEPS:
            total = ends + steps * diffusion["step"]
            report.rows.append(Row(f"latent diffusion, {steps} steps", 1, 512, 512, median=total, note=note))
    report.rows += skipped

    for batch in batches:
        if batch == 1:
            continue
        need = (own_peak - before) * batch if own_peak is not None and before is not None else 0
        if reason := _too_much(need, device):
            report.rows.append(Row(name, batch, width, height, note=reason))
            continue
        photos = photo.expand(batch, -1, -1, -1).contiguous()
        peak = peak_memory(lambda photos=photos: model.generate(photos), device)  # type: ignore[misc]
        timed = interleave({"": lambda photos=photos: model.generate(photos)}, repeats, device, warm_up=0)[""]  # type: ignore[misc]
        report.rows.append(Row(name, batch, width, height, timed.seconds, timed.median, peak))

    log.info("by part")
    report.parts = {part: timed.median for part, timed in measure_parts(model, photo, repeats).items()}
    for size in sizes:
        log.info("photo of %d x %d pixels", *size)
        report.sizes.append(_restore_size(model, name, size))
    return report


def _memory_in_use(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_memory(lambda: None, device)


def _too_much(need: int, device: torch.device) -> str:
    """Why something that needs so many bytes is skipped; empty if it is not."""
    available = available_memory(device)
    if available is None or need <= available:
        return ""
    return f"skipped: needs about {need / GIBIBYTE:.1f} GiB, {available / GIBIBYTE:.1f} GiB below 80 % of memory"


@contextlib.contextmanager
def _peer_calls(
    peers: Sequence[Peer], model: RestoreVAR, own_peak: int | None, skipped: list[Row]
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Calls of the peers that fit into memory; rows of the others are added to ``skipped``."""
    device, dtype = model.device, model.dtype
    height, width = model.image_size
    fitting: list[Peer] = []
    together = 0
    for peer in peers:
        if peer == "plain":
            need, row = 2 * (own_peak or 0), Row("plain, float32", 1, width, height)
        else:
            need, row = UNET_PARAMETERS * dtype.itemsize * 5 // 4 + 4 * GIBIBYTE, Row("latent diffusion", 1, 512, 512)
        row.note = _too_much(together + need, device)
        if row.note:
            skipped.append(row)
        else:
            fitting.append(peer)
            together += need
    if not fitting:
        yield {}
    elif device.type == "cuda":
        calls = peer_calls(fitting, model, device, dtype)
        yield calls
        calls.clear()  # they hold the peers' weights
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            if "plain" in fitting:
                model.save_pretrained(folder)
            with CallsElsewhere(peer_calls, fitting, folder, device, dtype) as elsewhere:
                yield elsewhere.calls()


def _restore_size(model: RestoreVAR, name: str, size: tuple[int, int]) -> Row:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    row = Row(f"{name}, tiles", 1, width, height)
    seconds: list[float] = []

    def restore() -> None:
        timed = interleave({"": lambda: model.restore(pixels)}, 1, model.device, warm_up=0)[""]
        seconds.extend(timed.seconds)

    row.peak_memory = peak_memory(restore, model.device)
    row.seconds, row.median = seconds, seconds[0]
    return row
