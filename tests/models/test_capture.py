import pytest
import torch

from restorevar import RestoreVAR
from restorevar.errors import UserError
from restorevar.models import GateConfig
from restorevar.models.capture import CapturedGeneration
from tests.models.small import DETAIL, photos, randomize, small_config, small_model


def test_graphs_need_cuda() -> None:
    with pytest.raises(UserError, match="the model is on cpu; CUDA graphs need a CUDA device"):
        CapturedGeneration(RestoreVAR(small_config()))


@pytest.mark.gpu
@pytest.mark.parametrize("gate", [None, GateConfig(hidden=8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_photos_are_the_models(dtype, gate) -> None:
    model = RestoreVAR(small_config(detail=DETAIL, gate=gate)).eval()
    randomize(model)
    model.set_precision(dtype).to("cuda")
    captured = CapturedGeneration(model, batch=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        degraded = torch.rand(2, 3, *model.image_size, generator=generator).cuda() * 2 - 1
        found, expected = captured(degraded), model.generate(degraded)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.allclose(found.image, expected.image, atol=1e-5 if dtype == torch.float32 else 2e-2)
    with pytest.raises(UserError, match="captured for"):
        captured(degraded[:1])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_model_need_not_be_on_the_current_device() -> None:
    model = small_model().to("cuda:1")
    photo = photos(model, batch=1)
    assert torch.equal(CapturedGeneration(model)(photo).tokens, model.generate(photo).tokens)
