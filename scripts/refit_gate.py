"""Fits a model's gate anew to the photos that runs of stage 5 remember; seconds, since nothing is restored.

python scripts/refit_gate.py runs/gate/model runs/*/checkpoints/last.ckpt --output runs/refit

For other sizes, floors and rates, and to put several runs together. All must have restored with the same weights.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from restorevar.errors import UserError
from restorevar.models import GateConfig, RestoreVAR
from restorevar.models.gate import STATISTICS_COUNT, PhotoGate
from restorevar.models.pretrained import copy_license
from restorevar.modules.gate import TERMS, blend_loss
from restorevar.optimization import CosineSchedule, apply_schedule, parameter_groups


def read_memory(checkpoints: list[Path]) -> torch.Tensor:
    """What stage 5 remembered, (n, 15 + 69).

    Raises:
        UserError: If a file is no checkpoint of stage 5.
    """
    memories = []
    for path in checkpoints:
        memory = torch.load(path, map_location="cpu", weights_only=True).get("gate_memory")
        if memory is None or memory.dim() != 2:
            raise UserError(f"{path} remembers no photos; expected a checkpoint of stage 5")
        if memory.shape[1] != TERMS + STATISTICS_COUNT:
            raise UserError(
                f"{path} remembers {memory.shape[1]} numbers a photo, from another version; expected "
                f"{TERMS + STATISTICS_COUNT}: run stage 5 again"
            )
        memories.append(memory)
    return torch.cat(memories)


def fit(
    gate: PhotoGate,
    memory: torch.Tensor,
    steps: int,
    batch: int,
    rate: float,
    decay: float,
    floor: float,
    harm: float,
) -> None:
    """AdamW with a cosine over shuffled batches, as stage 5 trains."""
    optimizer = torch.optim.AdamW(parameter_groups([gate]), rate, weight_decay=decay)
    scheduler = apply_schedule(optimizer, CosineSchedule(), steps, steps)
    gate.train()
    for _ in range(steps):
        loss = blend_loss(gate, memory[torch.randperm(len(memory))[:batch]], floor, harm)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gate.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    gate.eval()


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Fits a model's gate anew to what runs of stage 5 remember.")
    parser.add_argument("model", type=Path, help="model folder; its gate, if it has one, is replaced")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of stage 5")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.3, help="weight decay")
    parser.add_argument("--floor", type=float, default=3e-4, help="added to the squared error of a photo")
    parser.add_argument("--harm", type=float, default=1.5, help="how much more a dB below the degraded photo counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        memory = read_memory(options.checkpoints)
        model = RestoreVAR.from_pretrained(options.model)
        torch.manual_seed(options.seed)
        # the filter is part of what was remembered
        model.set_gate(dataclasses.replace(model.config.gate or GateConfig(), hidden=options.hidden))
        assert model.gate is not None
        fit(model.gate, memory, options.steps, options.batch, options.rate, options.decay, options.floor, options.harm)
        with torch.no_grad():
            psnr = -float(blend_loss(model.gate, memory, options.floor))
        model.save_pretrained(options.output)
        copy_license(options.model, options.output)
        print(f"{options.output}: gate fitted to {len(memory)} photos, {psnr:.2f} dB on them")
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
