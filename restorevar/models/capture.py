"""The whole of `generate` (encoder, all scales, refiner, decoder) as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from restorevar.errors import UserError
from restorevar.models.restorevar import Generation, RestoreVAR

__all__ = ["CapturedGeneration"]


class CapturedGeneration:
    """Replays :meth:`RestoreVAR.generate` for one batch size without launching its thousands of kernels one by one.

    Nothing in it waits for the device, copies to it or looks at a value, and every shape follows from the schedule, so
    that one graph holds the whole roll-out. Results are overwritten by the next call: clone what must live on. After a
    change of the weights' place (another precision, device or schedule) capture again.

    Args:
        model: The model, on a CUDA device.
        batch: Batch size B.
        fidelity: As in :meth:`RestoreVAR.generate`.

    Raises:
        UserError: If the model is not on a CUDA device.
    """

    def __init__(self, model: RestoreVAR, batch: int = 1, fidelity: float | None = None) -> None:
        if model.device.type != "cuda":
            raise UserError(f"the model is on {model.device}; CUDA graphs need a CUDA device: model.to('cuda')")
        self._photo = torch.zeros(batch, 3, *model.image_size, device=model.device)
        with torch.cuda.device(model.device):  # synchronised and captured is what is current
            # one for both: the stream that graphs make for themselves is on the device that was current first
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries choose their kernels outside the capture
                for _ in range(3):
                    model.generate(self._photo, fidelity=fidelity)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=side):
                self._generation = model.generate(self._photo, fidelity=fidelity)

    def __call__(self, degraded: Tensor) -> Generation:
        """Restores a batch.

        Args:
            degraded: (B, 3, H, W) in [-1, 1], B as captured.

        Raises:
            UserError: If the shape is another one than that captured.
        """
        if degraded.shape != self._photo.shape:
            raise UserError(f"got a batch of shape {tuple(degraded.shape)}; captured for {tuple(self._photo.shape)}")
        self._photo.copy_(degraded)
        self._graph.replay()
        return self._generation
