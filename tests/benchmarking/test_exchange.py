import cv2
import numpy as np
import torch

from restorevar.benchmarking.exchange import at_size_of, restore_with_latent_of
from restorevar.models import DetailConfig, RestoreVAR, RestoreVARConfig
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
    return np.mean(np.abs(first.astype(int) - second)) < 2.5  # levels of cells come from two photos, one resampled


def test_the_latent_is_the_other_photos_and_the_detail_this_photos() -> None:
    draw = np.random.default_rng(0).integers
    photo, another = (
        cv2.resize(
            draw(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )
        for height, width in ((40, 48), (64, 36))
    )
    resized = at_size_of(photo, another)
    plain, detailed = make_model(None), make_model(DetailConfig(16, 1))
    assert near(restore_with_latent_of(plain, photo, another), plain.restore(resized))
    assert not near(plain.restore(photo), plain.restore(resized))
    assert alike(restore_with_latent_of(detailed, photo, photo), detailed.restore(photo))
    exchanged = restore_with_latent_of(detailed, photo, another)
    assert not near(exchanged, detailed.restore(photo))
    assert not near(exchanged, detailed.restore(resized))
