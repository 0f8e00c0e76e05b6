"""Clean photos' latents on disk, for crops that are the same in every epoch."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorevar.errors import UserError
from restorevar.files import atomic_write
from restorevar.models import RestoreVAR

__all__ = ["LatentCache", "encoder_digest"]


class LatentCache:
    """Continuous latents, one file a photo; tokens follow from them exactly.

    A file is found by the digest of the crop's pixels, in a folder named after the encoder's weights and precision: a
    changed photo, crop or encoder finds nothing. Files appear whole, so any number of processes may share a folder;
    those that are broken or not ours count as absent and are replaced.

    Args:
        folder: Where the files go.
        model: Its encoder makes the latents; it must not change any more.
        bfloat16: Whether the encoder's convolutions are in bfloat16.
    """

    def __init__(self, folder: str, model: RestoreVAR, bfloat16: bool) -> None:
        self.encoder = encoder_digest(model, bfloat16)
        self.folder = Path(folder).expanduser() / self.encoder[:32]
        self.shape = (model.config.tokenizer.latent_channels, *model.scales.finest)

    def path(self, key: str) -> Path:
        """The file of a photo.

        Args:
            key: Digest of its pixels.
        """
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor | None:
        """The latent (Z, h, w) float32 on the CPU, or None if it is not there, broken, or another one."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                latent, found = file.get_tensor("latent"), file.metadata()
        except (OSError, SafetensorError):
            return None
        if latent.dtype != torch.float32 or tuple(latent.shape) != self.shape:
            return None
        return latent if found == self._metadata(key, latent) else None

    def complete(self, keys: Sequence[str], found: Sequence[Tensor | None], made: Tensor) -> Tensor:
        """All latents of a batch, (B, Z, h, w) on the device of ``made``; those that were not there are written.

        Args:
            keys: Digests of the photos.
            found: What :meth:`read` gave for each.
            made: The missing latents in their order, (M, Z, h, w).

        Raises:
            UserError: If a file cannot be written.
        """
        fresh = iter(made)
        latents = list(found)
        for index, key in enumerate(keys):
            if latents[index] is None:
                latents[index] = latent = next(fresh).cpu().contiguous()
                self._write(key, latent)
        whole = torch.stack([latent for latent in latents if latent is not None])
        whole = whole.contiguous(memory_format=torch.channels_last)  # as the encoder hands them out
        # page-locked, so that nobody waits for the GPU
        return whole.pin_memory().to(made.device, non_blocking=True) if made.is_cuda else whole.to(made.device)

    def _write(self, key: str, latent: Tensor) -> None:
        path = self.path(key)
        try:
            with atomic_write(path) as temporary:
                save_file({"latent": latent}, temporary, self._metadata(key, latent))
        except OSError as error:
            raise UserError(
                f"model.latent_cache: {path} cannot be written ({error.strerror}); make room, name another folder, or"
                " leave it out and resume"
            ) from error

    def _metadata(self, key: str, latent: Tensor) -> dict[str, str]:
        return {"photo": key, "encoder": self.encoder, "crc32": str(zlib.crc32(latent.contiguous().numpy().data))}


def encoder_digest(model: RestoreVAR, bfloat16: bool) -> str:
    """Hexadecimal SHA-256 of all that a latent depends on beside the photo: weights, precision, device, torch.

    Args:
        model: Whose encoder and ``quant_conv``.
        bfloat16: Whether the encoder's convolutions are in bfloat16.
    """
    digest = hashlib.sha256(f"{torch.__version__} {model.device.type} {bfloat16}".encode())
    for part in (model.tokenizer.encoder, model.tokenizer.quant_conv):
        for name, weight in part.state_dict().items():
            digest.update(f" {name} {weight.dtype} {tuple(weight.shape)} ".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
