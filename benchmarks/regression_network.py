"""A regression network of the detail path's size, trained on the same data for the same time: a peer for its scores.

    python benchmarks/regression_network.py --like MODEL --root PHOTOS --minutes 60 --output regression.safetensors
    python benchmarks/latent_and_detail.py MODEL PHOTOS --regression regression.safetensors

One pass of a residual U-Net, L1 to the clean photo, AdamW with the settings and the data of the detail path's stage.
Run again with the same output it goes on from there (weights and place in the data, not the optimizer's moments).
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restorevar.datamodules import RestorationDataModule
from restorevar.errors import UserError
from restorevar.files import atomic_write
from restorevar.models.detail import DetailPath
from restorevar.models.layers import ResidualBlock
from restorevar.models.pretrained import find_folder, read_config
from restorevar.optimization import parameter_groups

CONFIG = Path(__file__).parents[1] / "configs" / "nano" / "stage4.yaml"
RATE, WARMUP_STEPS = 1e-3, 100
SAVE_SECONDS = 300
PATCH, GROUPS = 4, 4


class RegressionNetwork(nn.Module):
    """Residual U-Net on pixel blocks of 4 x 4, as the small model's encoder sees them.

    Args:
        width: Channels at a quarter of the photo's size, a multiple of 4; twice as many at an eighth.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        pixels = 3 * PATCH**2
        self.conv_in = nn.Conv2d(pixels, width, 3, padding=1)
        self.fine_in = nn.Sequential(*(ResidualBlock(width, width, GROUPS) for _ in range(2)))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(*(ResidualBlock(2 * width, 2 * width, GROUPS) for _ in range(4)))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.fine_out = nn.Sequential(ResidualBlock(2 * width, width, GROUPS), ResidualBlock(width, width, GROUPS))
        self.conv_out = nn.Conv2d(width, pixels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # begins by leaving the photo as it is
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides multiples of 8, to about the same range."""
        blocks = F.pixel_unshuffle(degraded, PATCH).contiguous(memory_format=torch.channels_last)
        fine = self.fine_in(self.conv_in(blocks))
        coarse = self.coarse(self.down(fine))
        up = self.up(F.interpolate(coarse, scale_factor=2, mode="nearest"))
        decoded = self.fine_out(torch.cat([fine, up], dim=1))
        return degraded + F.pixel_shuffle(self.conv_out(F.silu(decoded)), PATCH)


def matching_width(model: str) -> int:
    """The width whose number of parameters comes nearest to that of a model's detail path.

    Args:
        model: Shipped name, model folder or hub id.

    Raises:
        UserError: The model has no detail path.
    """
    config = read_config(find_folder(model))
    if config.detail is None:
        raise UserError(f"{model} has no detail path to compare with; expected a model that went through stage 4")
    with torch.device("meta"):
        wanted = count(DetailPath(config.detail, config.tokenizer))
        return min(range(8, 512, GROUPS), key=lambda width: abs(count(RegressionNetwork(width)) - wanted))


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass
class Progress:
    """What a run has behind it: optimizer steps, and seconds with loading."""

    steps: int = 0
    seconds: float = 0.0


def load(path: Path) -> tuple[RegressionNetwork, Progress]:
    """A saved network in evaluation mode, and how long it was trained."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    network = RegressionNetwork(int(facts["width"]))
    network.load_state_dict(weights)
    return network.eval(), Progress(int(facts["steps"]), float(facts["seconds"]))


def save(path: Path, network: RegressionNetwork, progress: Progress) -> None:
    """Writes weights, width and progress."""
    facts = {"width": str(network.width), "steps": str(progress.steps), "seconds": f"{progress.seconds:.1f}"}
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=facts)


def read_data(config: Path, root: str | None) -> RestorationDataModule:
    """The data module of a stage's configuration, without validation.

    Args:
        config: YAML file with a section `data`.
        root: Folder that relative paths start from; None as configured.
    """
    section = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    section.pop("val", None)
    if root is not None:
        section["root"] = root
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RestorationDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": section})).data


def train(
    network: RegressionNetwork,
    data: RestorationDataModule,
    output: Path,
    progress: Progress,
    steps: int | None = None,
    seconds: float | None = None,
    bfloat16: bool = False,
    device: str = "cpu",
) -> list[float]:
    """Trains until so many steps or seconds are behind the network, those before this call counted, and saves it.

    Args:
        network: Trained in place.
        data: Where the crops come from.
        output: File to write, now and then and at the end.
        progress: What the network has behind it; counted on.
        steps: Optimizer steps in all; None is without bound.
        seconds: Seconds in all; None is without bound.
        bfloat16: Autocast to bfloat16.
        device: Torch device.

    Returns:
        The loss of each step of this call.
    """
    if steps is None and seconds is None:
        raise UserError("the run has no end; give steps or minutes")
    data.setup("fit")
    loader = data.train_dataloader()
    sampler = loader.epoch_sampler
    network.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups([network]), RATE, betas=(0.9, 0.95), weight_decay=0.02)
    losses: list[float] = []
    warmup = min(WARMUP_STEPS, (steps or 10 * WARMUP_STEPS) // 10)  # the optimizer starts anew in each call
    before, begun = progress.seconds, time.monotonic()
    saved = begun

    def share() -> float:
        return max(progress.steps / (steps or math.inf), progress.seconds / (seconds or math.inf))

    while share() < 1:
        epoch, batches = divmod(progress.steps, len(loader))
        loader.load_state_dict({"epoch": epoch, "consumed": batches * sampler.step})
        for batch in loader:
            rate = RATE * min((len(losses) + 1) / (warmup + 1), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(share(), 1.0)))
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                restored = network(batch["degraded"].to(device))
            loss = F.l1_loss(restored.float(), batch["clean"].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            now = time.monotonic()
            progress.steps, progress.seconds = progress.steps + 1, before + now - begun
            if len(losses) % 100 == 0:
                recent = sum(losses[-100:]) / 100
                print(f"step {progress.steps}, {progress.seconds / 60:.1f} min, loss {recent:.4f}", flush=True)
            if now - saved > SAVE_SECONDS:
                save(output, network, progress)
                saved = now
            if share() >= 1:
                break
    data.teardown("fit")
    save(output, network, progress)
    return losses


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", default="restorevar-nano", help="model whose detail path gives the size")
    parser.add_argument("--config", type=Path, default=CONFIG, help="whose data section is used")
    parser.add_argument("--root", help="folder that the configuration's paths start from")
    parser.add_argument("--minutes", type=float, help="of training in all, with what the file has behind it")
    parser.add_argument("--steps", type=int, help="in all; with --minutes, whichever comes first")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("regression.safetensors"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    try:
        if options.output.exists():
            network, progress = load(options.output)
            print(f"going on from {options.output}: {progress.steps} steps, {progress.seconds / 60:.1f} min")
        else:
            network, progress = RegressionNetwork(matching_width(options.like)), Progress()
        print(f"{count(network) / 1e6:.2f} M parameters")
        seconds = None if options.minutes is None else 60 * options.minutes
        data = read_data(options.config, options.root)
        train(network, data, options.output, progress, options.steps, seconds, options.bfloat16, options.device)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{options.output}: {progress.steps} steps, {progress.seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
