"""Key/value caches of one roll-out."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Preallocated self-attention keys and values of all blocks; nothing is concatenated.

    Args:
        depth: Number of blocks.
        batch: Batch size B.
        heads: Attention heads.
        tokens: Longest sequence T.
        head_width: Channels D of a head.
        device: Where to allocate.
        dtype: Of keys and values.
    """

    def __init__(
        self,
        depth: int,
        batch: int,
        heads: int,
        tokens: int,
        head_width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (depth, batch, heads, tokens, head_width)
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._length = 0  # tokens stored so far, the same for all blocks

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens of one block and returns all of its keys and values so far.

        Call :meth:`advance` once after the last block.

        Args:
            block: Index of the block.
            key: (B, heads, n, D).
            value: (B, heads, n, D).

        Returns:
            Keys and values (B, heads, length + n, D), views of the cache.
        """
        end = self._length + key.shape[2]
        keys, values = self._keys[block], self._values[block]
        keys[:, :, self._length : end] = key
        values[:, :, self._length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Marks the last ``tokens`` tokens as stored in every block."""
        self._length += tokens
