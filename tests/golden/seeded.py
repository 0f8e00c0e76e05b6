"""Weights by rule, the same on every machine, under their published names; and the recorded numbers.

Each weight is drawn from numpy's ``RandomState`` seeded with the crc32 of "<salt>/<name>", then scaled by kind.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
TABLES = ("attn_bias_for_masking", "freqs_cis", "freqs_cis_cross", "lvl_1L", "lvl_1L_cond", "ema_vocab_hit_SV")
Shapes = dict[str, list[int]]


@cache
def shapes(model: str) -> Shapes:
    """Names and shapes of a published file: ``tiny_tokenizer``, ``tiny_transformer``, ``paper_tokenizer`` ..."""
    return json.loads((FOLDER / "shapes.json").read_text())[model]


@cache
def golden() -> dict[str, Tensor]:
    """The recorded inputs and results."""
    return load_file(FOLDER / "tiny.safetensors")


def seeded_weights(shapes: Shapes, salt: str) -> dict[str, Tensor]:
    """State dict of these names and shapes; tables that follow from the sizes are left out."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("zero_k_bias"):
            weights[name] = torch.zeros(shape)
        elif not name.endswith(TABLES):
            state = np.random.RandomState(zlib.crc32(f"{salt}/{name}".encode()))
            drawn = torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32))
            weights[name] = _scaled(name, drawn).float().reshape(shape)
    return weights


def _scaled(name: str, drawn: Tensor) -> Tensor:
    leaf = name.rpartition(".")[2]
    is_vector = drawn.dim() == 1
    if name.endswith("scale_mul_1H11"):
        return math.log(30.0) + 0.1 * drawn
    if leaf in ("gain", "global_embed_gain") or (is_vector and leaf == "weight"):
        return 1.0 + 0.1 * drawn
    if is_vector:
        return 0.02 * drawn
    if name.endswith("embedding.weight"):  # the codebook
        return drawn
    if name in ("word_embed.weight", "word_embed_cond.weight"):
        return 4.0 * drawn / math.sqrt(drawn.shape[1])
    if name.endswith(("class_emb.weight", "lvl_embed.weight", "lvl_embed_cond.weight")):
        return 0.1 * drawn
    if drawn.dim() in (2, 4):
        return drawn / math.sqrt(math.prod(drawn.shape[1:]))
    return 0.02 * drawn


def tiny_tokenizer() -> dict[str, Tensor]:
    """The tiny model's tokenizer weights."""
    return seeded_weights(shapes("tiny_tokenizer"), "tiny/vae")


def tiny_transformer() -> dict[str, Tensor]:
    """The tiny model's transformer and refiner weights."""
    return seeded_weights(shapes("tiny_transformer"), "tiny/var")
