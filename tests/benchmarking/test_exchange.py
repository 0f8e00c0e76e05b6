import numpy as np
import torch

from restorevar.benchmarking.exchange import Variant, at_size_of, restore_with_latent_of
from restorevar.models import DetailConfig, GateConfig, RestoreVAR, RestoreVARConfig
from restorevar.restoration import tiling
from restorevar.restoration.restorer import Restorer
from tests.conftest import REFINER, SCALES, TOKENIZER, TRANSFORMER


def make_model(detail: DetailConfig | None, gate: GateConfig | None = None) -> RestoreVAR:
    torch.manual_seed(0)
    parts = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER, "refiner": REFINER, "detail": detail, "gate": gate}
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


def test_the_gate_has_its_say_on_an_exchanged_latent() -> None:
    draw = np.random.default_rng(0).integers
    photo, another = (draw(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2))
    model = make_model(DetailConfig(16, 1), GateConfig(hidden=8))
    assert model.gate is not None
    torch.nn.init.normal_(model.gate.fc2.weight)  # decides otherwise for every tile
    assert alike(restore_with_latent_of(model, photo, photo), model.restore(photo))
    torch.nn.init.constant_(model.gate.fc2.bias, 50.0)
    np.testing.assert_array_equal(restore_with_latent_of(model, photo, another), photo)


def test_latents_stay_with_their_tiles_where_memory_runs_out(monkeypatch) -> None:
    draw = np.random.default_rng(0).integers
    photo, another = (draw(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2))
    model = make_model(DetailConfig(16, 1))
    monkeypatch.setattr(Restorer, "_batch_size", lambda self: self._batch_limit)
    expected = restore_with_latent_of(model, photo, another)
    failing = {"keep": 2, "give": 2}  # once in each of the two restorations, in the midst of a photo
    generate = Variant.generate

    def fail_once(self: Variant, degraded: torch.Tensor, **options: object) -> object:
        name = "give" if self.exchange.__name__ == "<lambda>" else "keep"
        failing[name] -= 1
        found = generate(self, degraded, **options)
        if failing[name] == 0:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(Variant, "generate", fail_once)
    assert alike(restore_with_latent_of(model, photo, another), expected)
    assert max(failing.values()) < 0
