"""Time by part of the model: encoder, each scale, refiner, decoder."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from restorevar.benchmarking.timing import Measurement, synchronize
from restorevar.models import RestoreVAR, RollOut

__all__ = ["measure_parts"]


@torch.no_grad()
def measure_parts(model: RestoreVAR, photo: Tensor, repeats: int) -> dict[str, Measurement]:
    """Times the parts of a restoration one after the other.

    Args:
        model: The model.
        photo: (B, 3, H, W) in [-1, 1], of the model's own size.
        repeats: Rounds after one that does not count.

    Returns:
        Measurements of ``encoder``, ``scale 1`` ... ``scale K`` (the condition's keys and values belong to the first),
        ``refiner`` where there is one, and ``decoder``.
    """
    measurements: dict[str, Measurement] = {}
    fidelity = model.resolve_fidelity(None)
    device = model.device

    def lap(name: str, began: float, counts: bool) -> float:
        synchronize(device)
        now = time.perf_counter()
        if counts:
            measurements.setdefault(name, Measurement()).seconds.append(now - began)
        return now

    for repeat in range(repeats + 1):
        counts = repeat > 0
        synchronize(device)
        clock = time.perf_counter()
        features, pyramid = model.tokenizer.encoder.features(model.prepared(photo))
        pyramid = pyramid if fidelity else []
        clock = lap("encoder", clock, counts)
        steps = []
        for index, step in enumerate(model.scale_by_scale(features)):
            steps.append(step)
            clock = lap(f"scale {index + 1}", clock, counts)
        tokens, hidden = torch.cat([step.tokens for step in steps], 1), torch.cat([step.hidden for step in steps], 1)
        latent = model.refine(RollOut(tokens, hidden, steps[-1].latent), features)
        if model.refiner is not None:
            clock = lap("refiner", clock, counts)
        model.decode(latent, pyramid, fidelity)
        lap("decoder", clock, counts)
    return measurements
