"""Distances closer to what eyes see: multi-scale SSIM and LPIPS."""

import logging

import torch
from torch import Tensor, nn

from restorevar.losses.base import ImageLoss

__all__ = ["MultiScaleSimilarity", "PerceptualDistance"]

log = logging.getLogger(__name__)

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003


class MultiScaleSimilarity(ImageLoss):
    """1 - MS-SSIM; photos too small for the usual five scales use fewer, with the weights renormalised.

    Args:
        weight: Factor in the sum of the terms.
    """

    name = "ms_ssim"

    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """See :meth:`ImageLoss.__call__`."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as similarity

        betas = BETAS[: scale_count(min(clean.shape[2:]))]
        betas = tuple(beta / sum(betas) for beta in betas)
        # in [0, 1]; ReLU keeps negative contrasts from making powers of negative numbers
        value = similarity(
            ((decoded + 1) / 2).contiguous(),
            ((clean + 1) / 2).contiguous(),
            data_range=1.0,
            betas=betas,
            normalize="relu",
        )
        return 1 - value


def scale_count(side: int) -> int:
    """Scales of MS-SSIM that a side of this many pixels allows: its window of 11 must fit each, at most 5."""
    count = 1
    while count < len(BETAS) and side // 2**count > 10:
        count += 1
    return count


class PerceptualDistance(ImageLoss):
    """LPIPS with AlexNet, where its weights are at hand (``TORCH_HOME/hub/checkpoints``); 0 with one warning otherwise.

    Args:
        weight: Factor in the sum of the terms.
    """

    name = "lpips"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        # the frozen network is no part of the module that is trained, averaged and saved
        self._network: nn.Module | None = None
        self._tried = False

    def __call__(self, decoded: Tensor, clean: Tensor) -> Tensor:
        """See :meth:`ImageLoss.__call__`."""
        if not self._tried:
            self._network = self._build(clean.device)
            self._tried = True
        if self._network is None:
            return clean.new_zeros(())
        return self._network(decoded.clamp(-1, 1), clean).mean()

    def _build(self, device: torch.device) -> nn.Module | None:
        from restorevar.evaluation.metrics import lpips_network

        network, reason = lpips_network()
        if network is None:
            log.warning("the LPIPS term of the loss is left out: %s", reason)
            return None
        return network.to(device).requires_grad_(False)
