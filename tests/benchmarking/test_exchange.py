import numpy as np
import torch

from restorevar.benchmarking.exchange import at_size_of, restore_with_latent_of
from restorevar.models import DetailConfig, RestoreVAR, RestoreVARConfig
from restorevar.restoration import tiling
from tests.conftest import REFINER, SCALES, TOKENIZER, TRANSFORMER


def make_model(detail: DetailConfig | None) -> RestoreVAR:
    torch.manual_seed(0)
    parts = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER, "refiner": REFINER, "detail": detail}
    model = RestoreVAR(RestoreVARConfig(scales=SCALES, **parts)).eval()
    torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight)
    if model.detail is not None:
        for level in model.detail.levels.values():
            torch.nn.init.normal_(level.conv_out.weight, std=0.1)
    return model


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    return np.mean(first == second) > 0.99  # several tiles at once round a little differently


def near(first: np.ndarray, second: np.ndarray) -> bool:
    return np.mean(np.abs(first.astype(int) - second) <= 3) > 0.99


def test_the_latent_is_the_other_photos_and_the_detail_this_photos(monkeypatch) -> None:
    monkeypatch.setattr(tiling, "level", lambda restored, *_: restored)  # levels are taken from this photo
    draw = np.random.default_rng(0).integers
    photo, another = (draw(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 48), (64, 36)))
    resized = at_size_of(photo, another)
    plain, detailed = make_model(None), make_model(DetailConfig(16, 1))
    assert near(restore_with_latent_of(plain, photo, another), plain.restore(resized))
    assert not near(plain.restore(photo), plain.restore(resized))
    assert alike(restore_with_latent_of(detailed, photo, photo), detailed.restore(photo))
    exchanged = restore_with_latent_of(detailed, photo, another)
    assert not near(exchanged, detailed.restore(photo))
    assert not near(exchanged, detailed.restore(resized))
