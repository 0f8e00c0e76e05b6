"""``restorevar web``: one page in the browser to try a model on a photo, served by this machine."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from PIL import Image

from restorevar.cli.restore import DEFAULT_MODEL, load_model
from restorevar.devices import choose_device, choose_precision
from restorevar.errors import UserError
from restorevar.restoration.color import ColorFix
from restorevar.restoration.photo import SUFFIXES, read_photo, to_8_bits, write_photo
from restorevar.restoration.restorer import Restorer

if TYPE_CHECKING:
    from restorevar.models import RestoreVAR

__all__ = ["web"]

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"  # this machine only
SHOWN = 2048  # pixels of the longer side in the browser; the download has all


def web(
    model: str = DEFAULT_MODEL,
    port: int = 7860,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    share: bool = False,
) -> int:
    """Opens a page to try a model: give a photo, compare before and after, download the result.

    The page is for this machine only, and photos stay on it: they are deleted when the command ends (Ctrl-C, SIGTERM).
    Needs the extra `web`: python -m pip install ".[web]" in the repository's folder.

    Args:
        model: Name of a shipped model, a model folder, or a hub id.
        port: The page is at http://127.0.0.1:PORT.
        device: auto is a GPU if there is one.
        precision: auto is bfloat16 where the device computes it natively, else float32.
        share: Also open the page to anyone who has its link, for 72 hours. Photos then go through Gradio's servers.

    Returns:
        0.
    """
    gradio = import_gradio()
    network, _ = load_model(model)
    place = choose_device(device)
    network.set_precision(choose_precision(precision, place)).to(place)
    with tempfile.TemporaryDirectory(prefix="restorevar-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(gradio, network, Path(folder))
        log.info("http://%s:%d - stop with Ctrl-C", ADDRESS, port)
        try:
            page.launch(server_name=ADDRESS, server_port=port, share=share, ssr_mode=False, quiet=True, footer_links=[])
        except OSError:
            raise UserError(f"port {port} is taken or not allowed; choose another with --port") from None
        finally:
            page.close()
    return 0


def import_gradio() -> Any:
    """The package that makes the page, told to send nothing about its use.

    Raises:
        UserError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when the package is imported
    try:
        import gradio
    except ImportError:
        raise UserError(
            'the page needs Gradio, which is not installed; in the repository: python -m pip install ".[web]"'
        ) from None
    return gradio


def build_page(gradio: Any, network: "RestoreVAR", folder: Path) -> Any:
    """The page, not yet served.

    Args:
        gradio: The package.
        network: The model, on its device.
        folder: Where results are written.

    Returns:
        A `gradio.Blocks` with one event, the restoration.
    """
    has_fidelity = network.resolve_fidelity(None) > 0
    bar = gradio.Progress()

    def restore(
        path: str | None,
        fidelity: float,
        color_fix: ColorFix,
        progress: Any = bar,  # Gradio looks for a default of this type and puts the event's own in its place
    ) -> tuple[tuple[Image.Image, Image.Image], str]:
        if path is None:
            raise gradio.Error("Choose a photo first.", print_exception=False)
        try:
            before, after, result = restore_upload(
                network, Path(path), folder, fidelity if has_fidelity else None, color_fix, progress, gradio.Info
            )
        except UserError as error:
            message = str(error).replace(path, Path(path).name)
            raise gradio.Error(message, print_exception=False) from None
        return (before, after), str(result)

    with gradio.Blocks(title="RestoreVAR", analytics_enabled=False) as page:
        gradio.Markdown("# RestoreVAR\nRestores photos taken in haze, rain, snow or the dark.")
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = gradio.File(label="Photo", file_types=list(SUFFIXES), type="filepath")
                fidelity = gradio.Slider(
                    0, 1, 1, label="Fidelity", info="0: the method alone; 1: most of the photo", visible=has_fidelity
                )
                color_fix = gradio.Radio(
                    list(get_args(ColorFix)),
                    value="none",
                    label="Colour fix",
                    info="Takes colours back from the photo, and haze and darkness with them.",
                )
                start = gradio.Button("Restore", variant="primary")
                download = gradio.DownloadButton("Download PNG")
            with gradio.Column(scale=3):
                comparison = gradio.ImageSlider(label="Before and after", format="png", interactive=False)
        start.click(restore, [photo, fidelity, color_fix], [comparison, download], api_name="restore")
    return page


def restore_upload(
    network: "RestoreVAR",
    path: Path,
    folder: Path,
    fidelity: float | None,
    color_fix: ColorFix,
    progress: Callable[[float], object],
    note: Callable[[str], None],
) -> tuple[Image.Image, Image.Image, Path]:
    """Restores one photo as `restorevar restore` does, but for the format of the result.

    Args:
        network: The model.
        path: The photo.
        folder: A folder for the result.
        fidelity: Weight of the detail path, None for models without one.
        color_fix: Kind of colour fix.
        progress: Called with the share that is done, 0 to 1.
        note: Called with what the user should know.

    Returns:
        The photo and the restored one for the screen, upright, and the PNG file with everything that the photo
        carried: size, 16 bits, alpha, EXIF, colour profile.

    Raises:
        UserError: The photo cannot be read or restored; the message names it.
    """
    restorer = Restorer(network, fidelity=fidelity, color_fix=color_fix, note=note)
    photo = read_photo(path)
    for line in photo.notes:
        note(line)
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        progress(min(done, 1.0))

    restored = replace(photo, pixels=restorer.restore(photo.pixels, advance), format="PNG")
    result = Path(tempfile.mkdtemp(dir=folder)) / f"{path.stem}.png"
    write_photo(result, restored)
    before, after = (Image.fromarray(to_8_bits(pixels)) for pixels in (photo.pixels, restored.pixels))
    for image in (before, after):
        image.thumbnail((SHOWN, SHOWN))
    return before, after, result
