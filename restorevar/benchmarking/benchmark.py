"""One run of all measurements."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import restorevar
from restorevar import memory
from restorevar.benchmarking.cost import Rates, count, rate_calls
from restorevar.benchmarking.parts import measure_parts
from restorevar.benchmarking.peers import UNET_PARAMETERS, Peer, check_plain, peer_calls
from restorevar.benchmarking.process import CallsElsewhere
from restorevar.benchmarking.report import Report, Row
from restorevar.benchmarking.timing import Measurement, available_memory, interleave, peak_memory
from restorevar.errors import UserError
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TransformerConfig

__all__ = ["paper_model", "run_benchmark"]

DIFFUSION_STEPS = (20, 50)
GIBIBYTE = 2**30
PHOTO_BYTES = 32  # of main memory a pixel at most, whatever the size

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
    """Name of the processor or GPU; of a processor also its generation, which names often lack, and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    name = processor_name(path.read_text()) if path.exists() else None
    return f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def processor_name(facts: str) -> str | None:
    """Name, family and model of the processor that the text of ``/proc/cpuinfo`` describes; None where it has no name.

    Args:
        facts: The text.
    """
    known = dict(re.findall(r"^([^\t:\n]+)\s*: (.+)$", facts, re.MULTILINE))
    if "model name" not in known:
        return None
    generation = f" (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else ""
    return known["model name"] + generation


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
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, *model.image_size, generator=generator).to(device) * 2 - 1

    log.info("one photo, peers, and the machine's rates")
    before = _memory_in_use(device)
    own_peak = peak_memory(lambda: model.generate(photo), device)
    rows, rates = _time_in_turns(model, name, photo, peers, own_peak, compiled, rate_side, repeats)
    added = own_peak - before if own_peak is not None and before is not None else 0
    rows += [_batch_row(model, name, photo, batch, added, repeats) for batch in batches if batch != 1]
    log.info("by part")
    parts = {part: timed.median for part, timed in measure_parts(model, photo, repeats).items()}
    return Report(
        model=name,
        device=describe_device(device),
        precision=str(dtype).removeprefix("torch."),
        versions=versions(),
        operations={"convolutions": cost.convolutions, "matrix products": cost.products},
        rates=dataclasses.asdict(rates),
        floor=rates.floor(cost),
        rows=rows,
        parts=parts,
        sizes=[_size_row(model, name, size) for size in sizes],
    )


def _time_in_turns(
    model: RestoreVAR,
    name: str,
    photo: Tensor,
    peers: Sequence[Peer],
    own_peak: int | None,
    compiled: bool,
    rate_side: int,
    repeats: int,
) -> tuple[list[Row], Rates]:
    """Rows of single photos, the model's first, and the machine's rates; peers, graph and matrices end with it."""
    device, (height, width) = model.device, model.image_size
    own, notes = _own_calls(model, name, photo, compiled)
    machine = rate_calls(device, model.dtype, side=rate_side)
    skipped: list[Row] = []
    with _peer_calls(peers, model, own_peak, skipped) as others:
        # a model's folder may be called anything, a peer's or a rate's name as well
        calls: dict[tuple[str, str], Callable[[], Any]] = {("own", row): call for row, call in own.items()}
        calls |= {("peer", row): call for row, call in others.items()}
        calls |= {("rate", rate): part.call for rate, part in machine.items()}
        measured = interleave(calls, repeats, device)
    rates = Rates(**{rate: part.operations / measured["rate", rate].median for rate, part in machine.items()})
    rows = []
    for (group, row), timed in measured.items():
        if group == "own" or (group == "peer" and not row.startswith("diffusion ")):
            note = notes.get(row, "") if group == "own" else ""
            rows.append(Row(row, 1, width, height, timed.seconds, timed.median, note=note))
    rows[0].peak_memory = own_peak
    return rows + _diffusion_rows(measured) + skipped, rates


def _own_calls(
    model: RestoreVAR, name: str, photo: Tensor, compiled: bool
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The model's calls by row, and notes. Only the calls hold a CUDA graph, which keeps memory for itself."""
    calls: dict[str, Callable[[], Any]] = {name: lambda: model.generate(photo)}
    notes: dict[str, str] = {}
    if photo.device.type == "cuda":
        from restorevar.models.capture import CapturedGeneration

        captured = CapturedGeneration(model)
        calls[f"{name}, one CUDA graph"] = lambda: captured(photo)
    if compiled:
        fast = torch.compile(model.generate)
        took = interleave({"": lambda: fast(photo)}, 1, photo.device, warm_up=0)[""].median
        calls[f"{name}, compiled"] = lambda: fast(photo)
        notes[f"{name}, compiled"] = f"first call {took:.1f} s (compiled code is cached on disk)"
    return calls, notes


def _diffusion_rows(measured: Mapping[tuple[str, str], Measurement]) -> list[Row]:
    """Latent diffusion of several numbers of steps, from its encoder, decoder and one step; none where not measured."""
    if ("peer", "diffusion step") not in measured:
        return []
    encoder, step, decoder = (measured["peer", f"diffusion {part}"].median for part in ("encoder", "step", "decoder"))
    ends = encoder + decoder
    note = f"encoder and decoder {ends:.2f} s, a step {step:.2f} s"
    return [
        Row(f"latent diffusion, {steps} steps", 1, 512, 512, median=ends + steps * step, note=note)
        for steps in DIFFUSION_STEPS
    ]


def _batch_row(model: RestoreVAR, name: str, photo: Tensor, batch: int, added: int, repeats: int) -> Row:
    """Several photos at once, or why they are skipped; ``added`` is the memory in bytes that one takes."""
    height, width = model.image_size
    if reason := _too_much(added * batch, model.device):
        return Row(name, batch, width, height, note=reason)
    photos = photo.expand(batch, -1, -1, -1).contiguous()
    peak = peak_memory(lambda: model.generate(photos), model.device)
    timed = interleave({"": lambda: model.generate(photos)}, repeats, model.device, warm_up=0)[""]
    return Row(name, batch, width, height, timed.seconds, timed.median, peak)


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
        yield peer_calls(fitting, model, device, dtype)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            if "plain" in fitting:
                model.save_pretrained(folder)
            with CallsElsewhere(peer_calls, fitting, folder, device, dtype) as elsewhere:
                yield elsewhere.calls()


def _size_row(model: RestoreVAR, name: str, size: tuple[int, int]) -> Row:
    """A photo of (width, height) restored in tiles."""
    width, height = size
    if reason := _too_much(PHOTO_BYTES * width * height, torch.device("cpu")):
        return Row(f"{name}, tiles", 1, width, height, note=reason)
    log.info("photo of %d x %d pixels", width, height)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    row = Row(f"{name}, tiles", 1, width, height)
    seconds: list[float] = []

    def restore() -> None:
        timed = interleave({"": lambda: model.restore(pixels)}, 1, model.device, warm_up=0)[""]
        seconds.extend(timed.seconds)

    row.peak_memory = peak_memory(restore, model.device)
    row.seconds, row.median = seconds, seconds[0]
    return row
