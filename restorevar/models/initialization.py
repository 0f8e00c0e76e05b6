"""Initial weights for training from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from restorevar.models.refiner import AttentionRefiner, ConvolutionRefiner, Refiner
from restorevar.models.tokenizer import Tokenizer
from restorevar.models.transformer import ScaleTransformer

__all__ = [
    "WithoutInitialization",
    "initialize_as_copy",
    "initialize_refiner",
    "initialize_tokenizer",
    "initialize_transformer",
    "low_cosines",
]


class WithoutInitialization(TorchFunctionMode):
    """In-place functions do nothing, so that layers draw no weights.

    The meta device would do as well, but imports PyTorch's compiler and an algebra system when it is first used, which
    takes seconds. What was computed in the meantime from tensors that are filled in place has to be made anew.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls ``func``, or returns the tensor that it would change."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _truncated_normal(module: nn.Module, std: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=std)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialize_tokenizer(tokenizer: Tokenizer) -> None:
    """Codebook uniform in [-1 / V, 1 / V]; convolutions keep torch's defaults, additive phi convolutions start at 0.

    With a linear path everything beside it starts at 0 or as the identity.
    """
    codebook = tokenizer.quantizer.codebook
    nn.init.uniform_(codebook.weight, -1.0 / codebook.num_embeddings, 1.0 / codebook.num_embeddings)
    if tokenizer.quantizer.phi_identity == 1.0:
        for parameter in tokenizer.quantizer.phi.parameters():
            nn.init.zeros_(parameter)
    if tokenizer.encoder.linear is not None and tokenizer.decoder.linear is not None:
        block = tokenizer.config.downsampling
        cosines = low_cosines(block, tokenizer.config.latent_channels)
        with torch.no_grad():
            # distances of latents are distances of pictures, up to what the lowest cosines miss
            tokenizer.encoder.linear.weight.copy_(cosines / block)
            tokenizer.decoder.linear.weight.copy_(cosines * block)
        for conv in (tokenizer.quant_conv, tokenizer.post_quant_conv):
            nn.init.dirac_(conv.weight)
        for layer in (tokenizer.encoder, tokenizer.decoder):
            nn.init.zeros_(layer.conv_out.weight)
        for biased in (
            tokenizer.encoder.linear,
            tokenizer.decoder.linear,
            tokenizer.quant_conv,
            tokenizer.post_quant_conv,
            tokenizer.encoder.conv_out,
            tokenizer.decoder.conv_out,
        ):
            if biased.bias is not None:
                nn.init.zeros_(biased.bias)


def _cosine_order(block: int, count: int) -> list[tuple[int, int, int]]:
    """(color, u, v) of the first cosine patterns of a block, in the order of their share in photographs."""
    order = sorted(
        ((u * u + v * v) if color == 0 else 3 * (u * u + v * v) + 3, color, u, v)
        for color in range(3)
        for u in range(block)
        for v in range(block)
    )
    return [(color, u, v) for _, color, u, v in order[:count]]


def low_cosines(block: int, count: int) -> Tensor:
    """The first cosine patterns of a block of pixels in the order of their share in photographs.

    Luma comes before chroma: the variance of a pattern falls with its squared frequency, and chroma has less of it.

    Args:
        block: Side of the block in pixels.
        count: Patterns, at most 3 block^2.

    Returns:
        (count, 3, block, block) float32, orthonormal.
    """
    index = torch.arange(block, dtype=torch.float64, device="cpu")
    waves = torch.cos(math.pi * (index[None] + 0.5) * index[:, None] / block) * math.sqrt(2 / block)
    waves[0] /= math.sqrt(2)
    colors = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64, device="cpu")
    colors = colors / colors.norm(dim=1, keepdim=True)
    order = _cosine_order(block, count)
    patterns = [torch.einsum("c,y,x->cyx", colors[c], waves[u], waves[v]) for c, u, v in order]
    return torch.stack(patterns).float()


def cosine_sizes(block: int, count: int) -> Tensor:
    """Rough standard deviation of the coefficients of :func:`low_cosines` in photographs in [-1, 1].

    Fitted to blocks of 4 x 4 pixels; brightness varies a thousand times more than the finest chroma.

    Returns:
        (count,) float32.
    """

    def size(color: int, squared: int) -> float:
        if squared == 0:
            return (0.8 if color == 0 else 0.2) * block
        return 0.5 * squared**-0.6 if color == 0 else 0.1 / squared

    sizes = [size(color, u * u + v * v) for color, u, v in _cosine_order(block, count)]
    return torch.tensor(sizes, device="cpu")


def initialize_transformer(transformer: ScaleTransformer) -> None:
    """Truncated normal of std sqrt(1 / (3 C)), small head, outputs divided by sqrt(2 d)."""
    std = math.sqrt(1 / (3 * transformer.config.width))
    _truncated_normal(transformer, std)
    nn.init.trunc_normal_(transformer.condition_level_embed, std=std)
    transformer.head.weight.data.mul_(0.02)
    shrink = math.sqrt(2 * transformer.config.depth)
    for block in transformer.block_sequence:
        block.attention.out.weight.data.div_(shrink)
        block.mlp.fc2.weight.data.div_(shrink)


def initialize_refiner(refiner: Refiner) -> None:
    """Position embeddings truncated normal of std 0.02; the convolutional refiner starts as the identity."""
    if isinstance(refiner, AttentionRefiner):
        nn.init.trunc_normal_(refiner.latent_position, std=0.02)
        nn.init.trunc_normal_(refiner.hidden_position, std=0.02)
    elif isinstance(refiner, ConvolutionRefiner):
        for parameter in refiner.conv_out.parameters():
            nn.init.zeros_(parameter)


def initialize_as_copy(tokenizer: Tokenizer, transformer: ScaleTransformer) -> None:
    """Makes a fresh transformer predict the degraded photo's own tokens, so that training learns the repair alone.

    At each scale the quantizer looks up what is left of the latent. With a local condition the transformer sees the
    two halves of that difference: the degraded latent and the running sum. They are embedded with opposite signs on
    the same directions, every residual branch starts at 0, and the head compares the result with the codebook.

    Args:
        tokenizer: Trained; gives the codebook.
        transformer: Changed in place; it must have a local condition.

    Raises:
        ValueError: If it has none, or fewer channels than the latent and the levels need.
    """
    width, channels = transformer.config.width, transformer.word_embed.in_features
    scale_count = len(transformer.scales)
    if transformer.local_embed is None or width < channels + scale_count + 1:
        raise ValueError("a start as a copy needs a local condition and more channels than latent channels and scales")
    # orthonormal directions without a mean, which the head's norm would take away
    drawn = torch.randn(width, channels + scale_count)
    basis = torch.linalg.qr(torch.cat([torch.ones(width, 1), drawn], 1)).Q[:, 1:]
    directions, levels = basis[:, :channels], basis[:, channels:]
    entries = tokenizer.quantizer.codebook.weight.float()
    spread = entries.norm(dim=1).max()
    level_norm = 2 * spread  # long beside any residual, so that the head's norm leaves its length alone
    nearest = torch.cdist(entries, entries).fill_diagonal_(math.inf).amin(1).square().mean()
    sharpness = 0.5 / nearest
    with torch.no_grad():
        convolution = tokenizer.quant_conv
        transformer.condition_project.weight.copy_(convolution.weight[:, :, 1, 1])
        if convolution.bias is not None:
            transformer.condition_project.bias.copy_(convolution.bias)
        transformer.local_embed.weight.copy_(directions)
        transformer.word_embed.weight.copy_(-directions)
        transformer.level_embed.weight.copy_(levels.T * level_norm)
        transformer.class_embed.weight[-1].zero_()
        silent = [transformer.global_embed.weight, transformer.global_embed.bias]
        for block in transformer.block_sequence:
            silent += [block.attention.out.weight, block.mlp.fc2.weight, block.cross.out.weight]
        for parameter in silent:
            parameter.zero_()
        # nearest entry = largest <r, e> - |e|^2 / 2
        transformer.head.weight.copy_(sharpness * level_norm / math.sqrt(width) * entries @ directions.T)
        transformer.head.bias.copy_(-0.5 * sharpness * entries.square().sum(1))
