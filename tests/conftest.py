"""What all tests share: a model small enough to run anywhere, and real photographs that come inside scikit-image."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch
from PIL import Image

from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TokenizerConfig, TransformerConfig

# one thread a process: the models are tiny, and two workers with two threads each get into each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for child processes
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# the same examples each time and no deadlines: a slow machine is no failure; --hypothesis-profile=explore draws anew
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_seed_left_behind():
    """Lightning remembers a seed in the environment, and reseeds every later process of the test session with it."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def memory_settings_left_alone(monkeypatch):
    """A test session goes on after a command: its heap stays as it is."""
    monkeypatch.setattr("restorevar.memory._gnu_library", lambda: None)


SCALES = (1, 2, 4)
TOKENIZER = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    latent_channels=4,
    vocabulary_size=16,
    stem_patch=4,
    attention=False,
    norm_groups=4,
)
TRANSFORMER = TransformerConfig(depth=2, width=16, heads=2, gain_init=1.0, class_count=1)
REFINER = RefinerConfig(kind="convolution", width=16, depth=1)


def load_module(path: Path) -> ModuleType:
    """A file of `scripts/` or `benchmarks/` as a module, anew."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def skimage_photo(name: str) -> Path:
    """A photo of scikit-image, as a file; nothing is imported or fetched."""
    origin = importlib.util.find_spec("skimage").origin
    return Path(origin).parent / "data" / name


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Untrained 32 px model folders: ``tokenizer`` alone, with ``transformer``, with ``refiner`` (the whole model)."""
    root = tmp_path_factory.mktemp("models")
    parts = {"tokenizer": {}, "transformer": {"transformer": TRANSFORMER}}
    parts["refiner"] = {**parts["transformer"], "refiner": REFINER}
    for name, given in parts.items():
        torch.manual_seed(0)  # the shared parts are the same in all three
        model = RestoreVAR(RestoreVARConfig(scales=SCALES, tokenizer=TOKENIZER, **given))
        torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(root / name)
    return {name: root / name for name in parts}


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_folders) -> Path:
    """Model folder of a whole untrained model of 32 x 32 pixels."""
    return tiny_folders["refiner"]


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory) -> Path:
    """A folder with four real photographs shrunk to about 64 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg"):
        with Image.open(skimage_photo(name)) as photo:
            photo.convert("RGB").resize((72, 64), Image.Resampling.LANCZOS).save(folder / f"{Path(name).stem}.png")
    return folder
