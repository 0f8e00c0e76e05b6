import builtins
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from restorevar.cli import main
from restorevar.cli import web as module
from restorevar.restoration.photo import read_photo
from restorevar.restoration.restorer import Restorer
from tests.models.small import DETAIL, small_model
from tests.restoration.test_photo import exif_with


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the command sets for Gradio does not reach other tests."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def turned(tmp_path):
    """A JPEG that is to be shown turned by 90 degrees: 20 x 30 pixels upright."""
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path, exif=exif_with(6))
    return path


def restore(network, path, folder, fidelity=None):
    steps = []
    before, after, result = module.restore_upload(network, path, folder, fidelity, "none", steps.append, lambda _: None)
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(1)
    return before, after, result


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "gradio":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    assert main(["web", "--model", "anything"]) == 2
    assert capsys.readouterr().err == (
        'error: the page needs Gradio, which is not installed; in the repository: python -m pip install ".[web]"\n'
    )


def test_a_photo_goes_the_way_of_restore_and_comes_back_as_png(turned, tmp_path):
    network = small_model()
    before, after, result = restore(network, turned, tmp_path)
    given, written = read_photo(turned), read_photo(result)
    assert (before.size, after.size, result.name) == ((20, 30), (20, 30), "turned.png")
    assert (np.asarray(before) == given.pixels).all()
    assert (written.pixels == Restorer(network).restore(given.pixels)).all()
    assert (np.asarray(after) == written.pixels).all()
    assert written.exif == given.exif != b""


def test_16_bits_and_alpha_are_kept_and_the_screen_gets_a_small_copy(tmp_path, monkeypatch):
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (24, 40, 4), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    monkeypatch.setattr(module, "SHOWN", 20)
    before, after, result = restore(small_model(), tmp_path / "deep.tif", tmp_path)
    written = read_photo(result)
    assert (written.format, written.pixels.dtype, written.pixels.shape) == ("PNG", np.uint16, (24, 40, 3))
    assert (written.alpha == deep[..., 3]).all()
    assert before.size == after.size == (20, 12)


def test_fidelity_is_offered_only_with_a_detail_path_and_changes_the_result(turned, tmp_path):
    gradio = pytest.importorskip("gradio")
    network = small_model(detail=DETAIL)
    results = []
    for model in (network, small_model()):
        page = module.build_page(gradio, model, tmp_path)
        (slider,) = (block for block in page.blocks.values() if isinstance(block, gradio.Slider))
        assert slider.visible is (model.detail is not None)
        (event,) = page.fns.values()
        for fidelity in (0, 1):
            (before, after), result = event.fn(str(turned), fidelity, "none")
            assert before.size == after.size == Image.open(result).size
            results.append(np.asarray(after))
    assert (results[0] != results[1]).any()
    assert (results[2] == results[3]).all()
    with pytest.raises(gradio.Error, match="Choose a photo"):
        event.fn(None, 0, "none")
    turned.write_bytes(turned.read_bytes()[:100])
    with pytest.raises(gradio.Error, match=r"^.?turned\.jpg: damaged or truncated"):
        event.fn(str(turned), 0, "none")


def test_the_page_is_for_this_machine_only_and_leaves_no_photo_behind(turned, tmp_path, monkeypatch, capsys):
    gradio = pytest.importorskip("gradio")
    small_model().save_pretrained(tmp_path / "model")
    seen = {}

    def launch(page, **options):
        (event,) = page.fns.values()
        seen.update(options, result=event.fn(str(turned), 0, "mean")[1], analytics=page.analytics_enabled)
        assert os.path.exists(seen["result"])
        assert seen["result"].startswith(os.environ["GRADIO_TEMP_DIR"])

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    assert main(["web", "--model", str(tmp_path / "model"), "--port", "7999", "--device", "cpu"]) == 0
    assert (seen["server_name"], seen["server_port"], seen["share"], seen["analytics"]) == (
        "127.0.0.1",
        7999,
        False,
        False,
    )
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not os.path.exists(seen["result"])
    assert "http://127.0.0.1:7999" in capsys.readouterr().err

    def taken(page, **options):
        raise OSError("Cannot find empty port")

    monkeypatch.setattr(gradio.Blocks, "launch", taken)
    assert main(["web", "--model", str(tmp_path / "model"), "--port", "7999"]) == 2
    assert "port 7999 is taken" in capsys.readouterr().err


def test_being_stopped_from_outside_deletes_the_photos_too(tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    small_model().save_pretrained(tmp_path / "model")
    folders = []

    def launch(page, **options):
        folders.append(os.environ["GRADIO_TEMP_DIR"])
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["web", "--model", str(tmp_path / "model"), "--device", "cpu"]) == 130
    assert not os.path.exists(folders[0])
    assert signal.getsignal(signal.SIGTERM) is before
