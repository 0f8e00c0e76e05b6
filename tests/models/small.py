"""Small random models for tests: a forward pass takes milliseconds."""

from typing import Any

import torch
from torch import Tensor

from restorevar.models import (
    DetailConfig,
    RefinerConfig,
    RestoreVAR,
    RestoreVARConfig,
    TokenizerConfig,
    TransformerConfig,
)

TOKENIZER = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    latent_channels=8,
    vocabulary_size=24,
    norm_groups=4,
)
TRANSFORMER = TransformerConfig(depth=3, width=32, heads=2, mlp_ratio=2.0, class_count=5, gain_init=1.0)
ATTENTION_REFINER = RefinerConfig(width=24, heads=2, mlp_width=40, depth=2)
CONVOLUTION_REFINER = RefinerConfig(kind="convolution", width=32, depth=2, context=4)
DETAIL = DetailConfig(width=16, blocks=1)


def small_config(**changes: Any) -> RestoreVARConfig:
    """Four scales, photos of 24 x 24 pixels, all parts but the detail path."""
    values: dict[str, Any] = {
        "scales": (1, 2, 3, 6),
        "tokenizer": TOKENIZER,
        "transformer": TRANSFORMER,
        "refiner": ATTENTION_REFINER,
    }
    return RestoreVARConfig(**(values | changes))


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Gives every weight a value of its own, so that nothing starts at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("log_scale"):
                parameter.copy_(1.4 + 0.1 * drawn)
            elif name.endswith("codebook.weight"):
                parameter.copy_(drawn)
            elif parameter.dim() >= 2:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif name.endswith(("weight", "gain")):
                parameter.copy_(1 + 0.1 * drawn)
            else:
                parameter.copy_(0.1 * drawn)


def small_model(seed: int = 0, **changes: Any) -> RestoreVAR:
    """A model of :func:`small_config` with random weights, in evaluation mode."""
    model = RestoreVAR(small_config(**changes))
    randomize(model, seed)
    return model.eval()


def photos(model: RestoreVAR, batch: int = 2, seed: int = 0) -> Tensor:
    """Random photos (B, 3, H, W) in [-1, 1] of the model's own size."""
    return torch.rand(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
