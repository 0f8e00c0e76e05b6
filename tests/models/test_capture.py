import pytest
import torch

from restorevar import RestoreVAR
from restorevar.errors import UserError
from restorevar.models.capture import CapturedGeneration
from tests.models.small import DETAIL, randomize, small_config


def test_graphs_need_cuda() -> None:
    with pytest.raises(UserError, match="the model is on cpu; CUDA graphs need a CUDA device"):
        CapturedGeneration(RestoreVAR(small_config()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_photos_are_the_models(dtype) -> None:
    model = RestoreVAR(small_config(detail=DETAIL)).eval()
    randomize(model)
    model.set_precision(dtype).to("cuda")
    captured = CapturedGeneration(model, batch=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        photos = torch.rand(2, 3, *model.image_size, generator=generator).cuda() * 2 - 1
        found, expected = captured(photos), model.generate(photos)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.allclose(found.image, expected.image, atol=1e-5 if dtype == torch.float32 else 2e-2)
    with pytest.raises(UserError, match="captured for"):
        captured(photos[:1])
