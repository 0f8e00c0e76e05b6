import pytest
import torch

from restorevar import RestoreVAR
from restorevar.benchmarking import peers
from restorevar.errors import UserError
from tests.models.reference import relative
from tests.models.small import randomize, small_config


class TestPlain:
    @pytest.mark.parametrize("scales", [(1, 2, 3, 6), ((1, 2), (2, 3), (3, 4), (4, 8))])
    def test_same_numbers(self, scales) -> None:
        model = RestoreVAR(small_config(scales=scales)).eval()
        randomize(model)
        plain = peers.load_plain()(model)
        photos = torch.rand(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1
        found, expected = model.generate(photos), plain.generate(photos)
        assert torch.equal(found.tokens, expected.tokens)
        for name in ("hidden", "latent", "refined_latent", "image"):
            assert relative(getattr(found, name), getattr(expected, name)) < 1e-5, name

    def test_outside_a_checkout(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr(peers.restorevar, "__file__", str(tmp_path / "restorevar" / "__init__.py"))
        with pytest.raises(UserError, match="comes with a checkout only"):
            peers.load_plain()


@pytest.mark.slow
def test_latent_diffusion_has_the_published_size() -> None:
    pytest.importorskip("diffusers")
    diffusion = peers.LatentDiffusion(torch.device("cpu"), torch.bfloat16)
    photo = torch.zeros(1, 3, 64, 64)
    assert diffusion.restore(photo, 2).shape == (1, 3, 64, 64)
    assert list(diffusion.parts(photo)) == ["diffusion encoder", "diffusion step", "diffusion decoder"]
