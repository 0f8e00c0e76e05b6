"""What a user would pick instead: latent diffusion of Stable Diffusion 1.5's size, and the published algorithm."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import restorevar
from restorevar.errors import UserError
from restorevar.models import RestoreVAR
from restorevar.models.published import unpublished_settings

__all__ = ["UNET_PARAMETERS", "LatentDiffusion", "Peer", "check_plain", "load_plain", "peer_calls"]

Peer = Literal["diffusion", "plain"]

UNET_PARAMETERS = 859_520_964

# runwayml/stable-diffusion-v1-5, written out: nothing is fetched
UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
}
AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}


class LatentDiffusion:
    """A restorer by latent diffusion with random weights: encode, denoise from the encoding, decode; no guidance.

    Args:
        device: Where.
        dtype: Of all weights.

    Raises:
        UserError: If diffusers is not installed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        check_diffusion()
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        unet: Any = UNet2DConditionModel(**UNET)
        self.unet = unet.to(device, dtype, memory_format=torch.channels_last).eval()
        parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        if parameters != UNET_PARAMETERS:
            raise RuntimeError(f"the UNet has {parameters} parameters; Stable Diffusion 1.5 has {UNET_PARAMETERS}")
        autoencoder: Any = AutoencoderKL(**AUTOENCODER)
        self.autoencoder = autoencoder.to(device, dtype, memory_format=torch.channels_last).eval()
        self.scheduler: Any = DDIMScheduler(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        self.text = torch.randn(1, 77, 768, device=device).to(dtype)

    def encode(self, photo: Tensor) -> Tensor:
        """Latent (B, 4, H / 8, W / 8) of photos (B, 3, H, W) in [-1, 1]."""
        return self.autoencoder.encode(self._prepared(photo)).latent_dist.mode() * 0.18215

    def step(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """One denoising step."""
        noise = self.unet(latent, timestep, encoder_hidden_states=self.text.expand(len(latent), -1, -1)).sample
        return self.scheduler.step(noise, timestep, latent).prev_sample.to(latent.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Photos of latents."""
        return self.autoencoder.decode(latent / 0.18215).sample

    @torch.no_grad()
    def restore(self, photo: Tensor, steps: int) -> Tensor:
        """The whole way with as many denoising steps."""
        latent = self.encode(photo)
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            latent = self.step(latent, timestep)
        return self.decode(latent)

    def parts(self, photo: Tensor) -> dict[str, Callable[[], Any]]:
        """Encoder, one step, and decoder as calls: a restoration of n steps costs the ends and n steps."""
        with torch.no_grad():
            latent = self.encode(photo)
        self.scheduler.set_timesteps(20)
        timestep = self.scheduler.timesteps[0]
        return {
            "diffusion encoder": lambda: self.encode(photo),
            "diffusion step": lambda: self.step(latent, timestep),
            "diffusion decoder": lambda: self.decode(latent),
        }

    def _prepared(self, photo: Tensor) -> Tensor:
        weight = self.unet.conv_in.weight
        return photo.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)


def check_diffusion() -> None:
    """Raises a `UserError` if the package that ``diffusion`` is built from is not installed."""
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'diffusers cannot be imported ({error}); in the repository: python -m pip install ".[bench]"'
        ) from error


def load_plain() -> Any:
    """The class ``Plain`` of ``benchmarks/plain.py``, which lies beside the package in a checkout only.

    Raises:
        UserError: If it is not there.
    """
    path = Path(restorevar.__file__).parents[1] / "benchmarks" / "plain.py"
    if not path.is_file():
        raise UserError(f"{path} is missing; the plain reading of the published algorithm comes with a checkout only")
    specification = importlib.util.spec_from_file_location("restorevar_plain", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.Plain


def check_plain(model: RestoreVAR) -> None:
    """Raises a `UserError` for a model that is not of the published kind, which ``plain`` would read as another."""
    alike = ("tokenizer.stem_patch", "tokenizer.norm_groups", "tokenizer.phi_", "transformer.rotary_base")
    found = [name for name in unpublished_settings(model.config) if not name.startswith(alike)]
    if found:
        raise UserError(
            f"the peer plain reads models of the published kind only; this one has {', '.join(found)}: leave the peer"
            " out, or take --model paper"
        )


def peer_calls(
    peers: Sequence[Peer], model: RestoreVAR | Path, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """What to time of each peer, by name.

    Args:
        peers: Which.
        model: The model that ``plain`` reads plainly, or its folder.
        device: Where.
        dtype: Of the diffusion model; ``plain`` is float32 always.

    Raises:
        UserError: If a peer cannot be had.
    """
    calls: dict[str, Callable[[], Any]] = {}
    if "plain" in peers:
        plain_class = load_plain()
        network = RestoreVAR.from_pretrained(model).to(device) if isinstance(model, Path) else model
        plain = plain_class(network)
        photo = torch.rand(1, 3, *network.image_size, device=device) * 2 - 1
        calls["plain, float32"] = lambda: plain.generate(photo)
        calls["plain, float32, tokenizer only"] = lambda: plain.tokenizer(photo)
    if "diffusion" in peers:
        calls |= LatentDiffusion(device, dtype).parts(torch.rand(1, 3, 512, 512, device=device) * 2 - 1)
    return calls
