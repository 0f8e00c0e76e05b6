"""One photo of any size through a model: what `RestoreVAR.restore` and the command line share."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from restorevar.errors import UserError
from restorevar.memory import free_memory, peak_memory
from restorevar.models.gate import PhotoGate, photo_statistics
from restorevar.restoration.color import ColorFix, check_color_fix, fix_color
from restorevar.restoration.photo import cmyk_to_rgb, kept_info, orientation_of, upright
from restorevar.restoration.tiling import TileModel, blend_in_bands, measure_global_change, restore_tiles

if TYPE_CHECKING:
    from restorevar.models import RestoreVAR

__all__ = ["GlobalCorrection", "PhotoModel", "Restorer", "restore_photo"]

GlobalCorrection = Literal["on", "off"]
PhotoT = TypeVar("PhotoT", Image.Image, NDArray[Any], Tensor)

LARGEST_TILE = 8  # times the longer side of the model's own size
_MAX_BATCH = {"cpu": 4, "cuda": 32, "mps": 8}


class _Restored(Protocol):
    @property
    def image(self) -> Tensor: ...


class PhotoModel(Protocol):
    """What a model must offer to restore photos.

    Optional: `device` (default: CPU); `set_scales` with `scales`, without which only the model's own tile size works;
    `resolve_fidelity`, which checks a fidelity; `gate`, a :class:`restorevar.models.gate.PhotoGate`, which decides on
    the whole of a photo of several tiles: `generate` then takes `gated=False`, and no fidelity means 1.
    """

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""

    def generate(self, degraded: Tensor, fidelity: float | None = None) -> _Restored:
        """(B, 3, h, w) in [-1, 1] to an object whose `image` is (B, 3, h, w) in [0, 1]."""


class Restorer:
    """Restores photos of any size with one model and one set of options.

    The first call of the model takes one tile and shows how much memory that needs; how many tiles go together from
    then on follows from the free memory; one where that cannot be told. If memory runs out all the same, the photo is
    begun again with one tile at a time, then with smaller ones, and the restorer stays there.

    A model's gate decides once for the whole of a photo of several tiles, after they have been joined.

    Args:
        model: The model.
        tile: Side of the tiles in pixels; ``auto`` is the model's own size, at which it is best.
        overlap: Pixels over which tiles cross-fade; None is an eighth of the tile.
        fidelity: For models with a detail path or a gate: 0 (method only) to 1 (most of the input); None leaves it to
            the model.
        color_fix: See :func:`restorevar.restoration.color.fix_color`.
        global_correction: Whether tiles are levelled by one restoration of the whole photo at reduced size.
        note: Called with one line when something had to be changed to go on.

    Raises:
        UserError: If an option is wrong or does not fit the model.
    """

    def __init__(
        self,
        model: PhotoModel,
        *,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
        fidelity: float | None = None,
        color_fix: ColorFix = "none",
        global_correction: GlobalCorrection = "on",
        note: Callable[[str], None] | None = None,
    ) -> None:
        check_color_fix(color_fix)
        if global_correction not in get_args(GlobalCorrection):
            words = ", ".join(get_args(GlobalCorrection))
            raise UserError(f"global correction '{global_correction}' is unknown; expected one of: {words}")
        if fidelity is not None and not (isinstance(fidelity, int | float) and 0 <= fidelity <= 1):
            raise UserError(f"fidelity is {fidelity}; expected a number from 0 (method only) to 1 (most of the input)")
        if hasattr(model, "resolve_fidelity"):
            model.resolve_fidelity(fidelity)
        self.model = model
        self.fidelity = fidelity
        self.color_fix: ColorFix = color_fix
        self.global_correction: GlobalCorrection = global_correction
        self.tile = _tile_size(model, tile)
        self.overlap = _check_overlap(self.tile, overlap)
        self.device = torch.device(getattr(model, "device", "cpu"))
        self._note = note or (lambda line: None)
        self._batch_limit = _MAX_BATCH.get(self.device.type, 4)
        self._is_measured = False
        self._tile_memory: int | None = None  # unknown, also after a measurement that the system does not allow

    def restore(self, pixels: NDArray[Any], progress: Callable[[float], None] | None = None) -> NDArray[Any]:
        """Restores a photo.

        Args:
            pixels: (H, W, 3) RGB: uint8, uint16, or floating point in [0, 1].
            progress: Called now and then with the share of the work that was just done; the shares add up to 1, also
                where memory runs out on the way.

        Returns:
            An array of the same shape and type.

        Raises:
            UserError: If memory runs out with the smallest tile as well.
        """
        check_range(pixels)
        work = pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32, copy=False)
        told = 0.0

        def tell(share: float) -> None:
            nonlocal told
            if progress is not None and share > told:
                progress(share - told)
                told = share

        while True:
            try:
                restored = self._attempt(work, tell)
                break
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
            self._shrink()  # outside the handler, where the failed attempt's memory is free
        fix_color(restored, work, self.color_fix)
        return restored.astype(pixels.dtype, copy=False)

    def _attempt(self, pixels: NDArray[Any], tell: Callable[[float], None]) -> NDArray[Any]:
        """Restores a photo; ``tell`` hears the share that is done."""
        change, done = None, 0.0

        def progress(count: int, total: int) -> None:
            nonlocal done
            done += count / total
            tell(done)

        # the size is switched outside inference mode: what that makes must stay fit for training
        with _working_at(self.model, self.tile), torch.inference_mode():
            fits = pixels.shape[0] <= self.tile[0] and pixels.shape[1] <= self.tile[1]
            gate: PhotoGate | None = None if fits or self.fidelity == 0 else getattr(self.model, "gate", None)
            shrunk: list[Tensor] = []
            tiles: list[Tensor] = []

            def noting(statistics: list[Tensor]) -> TileModel:
                return self._generate if gate is None else partial(self._generate_ungated, statistics=statistics)

            if self.global_correction != "off" and not fits:
                change = measure_global_change(noting(shrunk), pixels, self.tile, self.device)
            restored = restore_tiles(
                noting(tiles),
                pixels,
                tile=self.tile,
                overlap=self.overlap,
                batch_size=self._batch_size,
                device=self.device,
                change=change,
                progress=progress,
            )
            if gate is not None:
                correction = gate.decide(torch.cat(tiles), shrunk[0] if shrunk else None)
                weight = 1.0 if self.fidelity is None else self.fidelity
                blend = partial(gate.blend, correction=correction, weight=weight)
                blend_in_bands(blend, restored, pixels, gate.reach, self.device)
            return restored

    def _generate_ungated(self, tiles: Tensor, statistics: list[Tensor]) -> Tensor:
        """Notes what a gate wants to know of every tile, for it to decide once all are there."""
        restored = self._generate(tiles, gated=False)
        statistics.append(photo_statistics((tiles.float() + 1) / 2, restored.float()))
        return restored

    def _generate(self, tiles: Tensor, **gated: bool) -> Tensor:
        """``gated`` is for models with a gate, others need not know it."""
        if self._is_measured:
            return self.model.generate(tiles, fidelity=self.fidelity, **gated).image
        images = []

        def generate() -> None:
            images.append(self.model.generate(tiles, fidelity=self.fidelity, **gated).image)

        before = peak_memory(lambda: None, self.device)
        peak = peak_memory(generate, self.device)
        if before is not None and peak is not None:
            self._tile_memory = max(peak - before, 1 << 20) // len(tiles)
        self._is_measured = True
        return images[0]

    def _batch_size(self) -> int:
        if self._tile_memory is None:
            return 1
        free = free_memory(self.device)
        fitting = self._batch_limit if free is None else int(0.6 * free / self._tile_memory)
        return max(1, min(fitting, self._batch_limit))

    def _shrink(self) -> None:
        """After memory ran out: fewer tiles at once; where it was one, smaller ones."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before, self._batch_limit = self._batch_size(), 1
        if before > 1:
            self._note(f"out of memory with {before} tiles at once: going on with one at a time")
            return
        smaller = _multiple_of(self.model, self.tile[0] // 2)
        if not hasattr(self.model, "set_scales") or smaller >= self.tile[0]:
            raise UserError(
                f"out of memory with one {self.tile[1]} x {self.tile[0]} tile at a time, and this model works at no "
                "smaller size; choose another device or close other programs"
            )
        self._note(f"out of memory with one tile of {self.tile[0]} px: going on with tiles of {smaller} px")
        self.overlap = self.overlap * smaller // self.tile[0]
        self.tile = (smaller, smaller)


def check_range(pixels: NDArray[Any]) -> None:
    """Raises a `UserError` unless an array is an RGB photo in one of the types and ranges that are understood."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(f"the photo has shape {pixels.shape}; expected (height, width, 3), none of them 0")
    if pixels.dtype in (np.uint8, np.uint16):
        return
    if pixels.dtype.kind != "f":
        raise UserError(f"the photo has type {pixels.dtype}; expected uint8, uint16, or floating point in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also NaN
        raise UserError(f"floating point photo with values from {low:g} to {high:g}; expected [0, 1], scale it first")


def restore_photo(
    model: PhotoModel,
    photo: PhotoT,
    *,
    tile: int | Literal["auto"] = "auto",
    overlap: int | None = None,
    fidelity: float | None = None,
    color_fix: ColorFix = "none",
    global_correction: GlobalCorrection = "on",
    note: Callable[[str], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> PhotoT:
    """Restores a photo of any size and returns the same kind of object.

    Args:
        model: The model.
        photo: A PIL image (it comes back upright, a palette or CMYK as RGB); an array (H, W), (H, W, 1), (H, W, 3), or
            with alpha (H, W, 2) or (H, W, 4), of uint8, uint16 or floating point in [0, 1]; a tensor (3, H, W) or
            (B, 3, H, W) of uint8 or floating point in [0, 1]. Alpha is left as it is.
        tile: See :class:`Restorer`, as for all that follow.
        overlap: Cross-fade in pixels.
        fidelity: Weight of detail path and gate.
        color_fix: ``none``, ``mean`` or ``wavelet``.
        global_correction: ``on`` or ``off``.
        note: Called with one line when something had to be changed to go on.
        progress: Called now and then with the share of the photo that was just done.

    Returns:
        A photo of the same kind, type and size. Of a PIL image the EXIF orientation was applied, so its size is that of
        the upright photo; `info` holds the ICC profile, resolution, EXIF (orientation 1) and XMP. Pillow stores most
        of that only if told to: ``restored.save("photo.jpg", exif=restored.getexif(),
        icc_profile=restored.info.get("icc_profile"))``.

    Raises:
        UserError: If the photo or an option is wrong.
    """
    restorer = Restorer(
        model,
        tile=tile,
        overlap=overlap,
        fidelity=fidelity,
        color_fix=color_fix,
        global_correction=global_correction,
        note=note,
    )
    if isinstance(photo, Image.Image):
        return _restore_image(restorer, photo, progress)
    if isinstance(photo, Tensor):
        return _restore_tensor(restorer, photo, progress)
    if isinstance(photo, np.ndarray):
        return _restore_array(restorer, photo, progress)
    raise UserError(f"the photo is a {type(photo).__name__}; expected a PIL image, a NumPy array or a tensor")


Progress = Callable[[float], None] | None


def _restore_image(restorer: Restorer, image: Image.Image, progress: Progress) -> Image.Image:
    mode = image.mode
    if mode in ("I", "F", "LAB", "HSV"):
        raise UserError(f"PIL image of mode {mode}; expected grey, RGB, palette or CMYK of 8 bits, or 16-bit grey")
    info = kept_info(image)
    try:
        image.load()  # turns a TIFF
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"PIL image that cannot be decoded ({error}); its file is damaged or truncated") from None
    orientation = orientation_of(image)
    if mode == "1":
        image = image.convert("L")
    elif mode == "CMYK":
        image = cmyk_to_rgb(image)
    elif mode.startswith("I;16"):
        pass  # stays as deep; of a transparent value Pillow has no form
    elif mode in ("La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if mode in ("L", "La") else "RGBA")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = upright(np.asarray(image), orientation)
    if mode.startswith("I;16"):
        pixels = pixels.astype(np.uint16)
    restored = Image.fromarray(_restore_array(restorer, np.ascontiguousarray(pixels), progress))
    restored.info.update(info)
    return restored


def _restore_array(restorer: Restorer, array: NDArray[Any], progress: Progress) -> NDArray[Any]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UserError(f"array of shape {array.shape}; expected (H, W) or (H, W, C) with 1 to 4 channels, last")
    if not array.dtype.isnative:
        native = array.astype(array.dtype.newbyteorder("="))
        return _restore_array(restorer, native, progress).astype(array.dtype)
    channels = array[..., None] if array.ndim == 2 else array
    colours = 3 if channels.shape[2] >= 3 else 1
    rgb = np.repeat(channels[..., :1], 3, axis=2) if colours == 1 else channels[..., :3]
    restored = restorer.restore(rgb, progress)
    if colours == 1:
        restored = _luma(restored)[..., None]
    if channels.shape[2] > colours:
        restored = np.concatenate([restored, channels[..., colours:]], axis=2)
    return restored.reshape(array.shape)


def _luma(rgb: NDArray[Any]) -> NDArray[Any]:
    values = rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return (np.rint(values) if rgb.dtype.kind == "u" else values).astype(rgb.dtype)


def _restore_tensor(restorer: Restorer, tensor: Tensor, progress: Progress) -> Tensor:
    if tensor.dim() not in (3, 4) or tensor.shape[-3] != 3 or 0 in tensor.shape:
        raise UserError(f"tensor of shape {tuple(tensor.shape)}; expected (3, H, W) or (B, 3, H, W), none of them 0")
    photos = tensor.detach().reshape(-1, *tensor.shape[-3:])
    # NumPy knows no bfloat16
    photos = (photos.float() if photos.is_floating_point() else photos).permute(0, 2, 3, 1).cpu()
    share = None if progress is None else lambda done: progress(done / len(photos))
    restored = [torch.from_numpy(restorer.restore(photo.numpy(), share)).permute(2, 0, 1) for photo in photos]
    return torch.stack(restored).reshape(tensor.shape).to(tensor.device, tensor.dtype)


def _tile_size(model: PhotoModel, tile: int | str) -> tuple[int, int]:
    """Checks a tile size against what the model can do."""
    own = model.image_size
    if tile == "auto" or (tile == own[0] == own[1]):
        return own
    name = f"{own[1]} x {own[0]}" if own[0] != own[1] else f"{own[0]}"
    if not hasattr(model, "set_scales"):
        raise UserError(f"tile is {tile}; this model works at its own size only: choose {name} or auto")
    step = _step(model)
    # beyond, quality is long gone, and Linux kills who asks for too much memory rather than tell
    most = LARGEST_TILE * max(own) // step * step
    if isinstance(tile, bool) or not isinstance(tile, int) or not 4 * step <= tile <= most or tile % step:
        raise UserError(
            f"tile is {tile}; expected auto or a multiple of {step} from {4 * step} to {most} (the model's own size is "
            f"{name})"
        )
    return tile, tile


def _check_overlap(tile: tuple[int, int], overlap: int | None) -> int:
    side = min(tile)
    if overlap is None:
        return side // 8
    if not 0 <= overlap <= side // 2:
        raise UserError(f"overlap is {overlap}; expected 0 to {side // 2}, half of the tile")
    return overlap


def _step(model: Any) -> int:
    """Pixels of the photo a side of one latent cell."""
    return int(model.image_size[0] // model.scales.finest[0])


def _multiple_of(model: Any, size: int) -> int:
    step = _step(model) if hasattr(model, "set_scales") else 1
    return max(size // step, 4) * step


@contextlib.contextmanager
def _working_at(model: Any, tile: tuple[int, int]) -> Iterator[None]:
    """Switches the model to another size of tile and back."""
    if tuple(model.image_size) == tuple(tile):
        yield
        return
    restorevar: RestoreVAR = model
    before, step = restorevar.scales, _step(model)
    # the very tensors are put back: an optimizer or a captured graph may hold them, and position embeddings that were
    # resized back would be blurred
    tensors = dict(itertools.chain(restorevar.named_parameters(), restorevar.named_buffers()))
    restorevar.set_scales(before.scaled((tile[0] // step, tile[1] // step)).to_list())
    try:
        yield
    finally:
        restorevar.set_scales(before.to_list())
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = restorevar.get_submodule(path)
            kept: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
            kept[leaf] = tensor


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)
