import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from restorevar.callbacks import ImageGrids
from restorevar.callbacks.images import labelled_grid
from restorevar.modules import RefinerModule
from tests.modules.stages import fit


def test_the_grid_shows_every_image_under_its_label():
    colours = {"degraded": -1.0, "restored": 0.0, "clean": 1.0}
    rows = [{name: torch.full((3, 40, 60), value) for name, value in colours.items()} for _ in range(2)]
    grid = labelled_grid(rows, ["haze", "rain"], side=30)
    cell_width, cell_height, bar, gap = 30, 20, 14, 2
    assert grid.shape == (bar + 2 * (cell_height + bar + gap), 3 * (cell_width + gap), 3)
    assert (grid[:bar] < 128).any()  # black letters
    for row in range(2):
        top = bar + row * (cell_height + bar + gap)
        for column, value in enumerate((0, 128, 255)):
            left = column * (cell_width + gap)
            cell = grid[top + bar : top + bar + cell_height, left : left + cell_width]
            assert np.abs(cell.astype(int) - value).max() <= 1
        assert (grid[top : top + bar] < 128).any()


def test_pictures_of_a_run(tiny_folders, tiny_photos, tmp_path):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    fit(module, tiny_photos, tmp_path, 2, [ImageGrids(count=2)], limit_val_batches=1.0, val_check_interval=2)
    with Image.open(tmp_path / "pictures" / "train_first_batch.png") as first:
        assert first.size == (2 * 34, 14 + 2 * 48)  # degraded and clean
    with Image.open(tmp_path / "pictures" / "validation.png") as validation:
        assert validation.size == (3 * 34, 14 + 2 * 48)  # degraded, restored and clean


def test_the_grids_are_on_tensorboard(tiny_folders, tiny_photos, tmp_path):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    logger = TensorBoardLogger(tmp_path, name=None, version="run")
    settings = {"logger": logger, "limit_val_batches": 1.0, "val_check_interval": 2}
    fit(module, tiny_photos, tmp_path, 2, [ImageGrids(count=2, files=False)], **settings)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["train_first_batch", "validation"]
    (first,) = events.Images("train_first_batch")
    assert (first.width, first.height) == (2 * 34, 14 + 2 * 48)  # degraded and clean
    assert first.step == 0


def test_files_can_be_left_out(tiny_folders, tiny_photos, tmp_path):
    module = RefinerModule(initial_model=str(tiny_folders["refiner"]))
    fit(module, tiny_photos, tmp_path, 1, [ImageGrids(files=False)])
    assert not (tmp_path / "pictures").exists()
