import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restorevar.errors import UserError
from restorevar.evaluation import metrics as metrics_module
from restorevar.evaluation.metrics import METRICS, PSNR_LIMIT, ImageMetrics, luma
from tests.evaluation.photos import pairs, photo, tensor

PIXEL_METRICS = ("psnr", "psnr_y", "ssim", "ssim_y", "ms_ssim")


def reference_ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """An independent one with SciPy: contrast below 0 counts as 0, odd sides are zero-padded."""
    value = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):

        def blurred(image):
            return gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]

        mean_1, mean_2 = blurred(first), blurred(second)
        variances = blurred(first**2) - mean_1**2 + blurred(second**2) - mean_2**2
        similarity = (2 * (blurred(first * second) - mean_1 * mean_2) + 0.03**2) / (variances + 0.03**2)
        if scale == 4:
            similarity = similarity * (2 * mean_1 * mean_2 + 1e-4) / (mean_1**2 + mean_2**2 + 1e-4)
        value *= np.maximum(similarity, 0).mean() ** weight
        halves = []
        for image in (first, second):
            odd = [(side % 2, side % 2) for side in image.shape[:2]]
            image = np.pad(image, (*odd, (0, 0)))
            image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
            halves.append((image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4)
        first, second = halves
    return value


def test_agrees_with_scikit_image_and_an_independent_ms_ssim():
    metrics = ImageMetrics(PIXEL_METRICS)
    weights = np.array([65.481, 128.553, 24.966])
    for degraded, clean in pairs():
        found = {name: float(value) for name, value in metrics(tensor(degraded), tensor(clean)).items()}
        a, b = degraded / 255, clean / 255
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        a_luma, b_luma = ((image @ weights + 16) / 255 for image in (a, b))
        assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-3)
        assert found["psnr_y"] == pytest.approx(peak_signal_noise_ratio(b_luma, a_luma, data_range=1), abs=1e-3)
        assert found["ssim"] == pytest.approx(structural_similarity(a, b, channel_axis=2, **options), abs=1e-5)
        assert found["ssim_y"] == pytest.approx(structural_similarity(a_luma, b_luma, **options), abs=1e-5)
        assert found["ms_ssim"] == pytest.approx(reference_ms_ssim(a, b), abs=1e-6)


def test_ssim_is_torchmetrics_without_the_reflected_border():
    from torchmetrics.functional.image import structural_similarity_index_measure

    degraded, clean = (tensor(image).double() for image in pairs()[0])
    whole, similarity = structural_similarity_index_measure(degraded, clean, data_range=1.0, return_full_image=True)
    found = float(ImageMetrics(("ssim",))(degraded, clean)["ssim"])
    assert found == pytest.approx(float(similarity[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert abs(found - float(whole)) > 1e-5  # what the border costs


def test_golden_values():
    """Numbers of this very pair, computed once with scikit-image 0.26 and pyiqa 0.1.16 (MS-SSIM)."""
    clean = photo("coffee.png", 192, 176)
    degraded = (clean.astype(np.float64) * 0.5 + 40).round().astype(np.uint8)
    found = ImageMetrics(PIXEL_METRICS)(tensor(degraded), tensor(clean))
    expected = {"psnr": 15.589493, "psnr_y": 17.982418, "ssim": 0.725669, "ssim_y": 0.864721, "ms_ssim": 0.850852}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-4)


def test_a_batch_has_one_value_each_and_luma_metrics_do_not_change_ssim():
    degraded = torch.cat([tensor(pair[0]) for pair in pairs()])
    clean = torch.cat([tensor(pair[1]) for pair in pairs()])
    together = ImageMetrics(PIXEL_METRICS)(degraded, clean)
    for index in range(len(clean)):
        alone = ImageMetrics(("psnr", "ssim", "ms_ssim"))(degraded[index : index + 1], clean[index : index + 1])
        for name, value in alone.items():
            assert together[name][index] == pytest.approx(float(value), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(11, 40), st.integers(11, 40), st.sampled_from([1, 3]), st.integers(0, 2**16))
def test_identity_and_symmetry(height, width, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(1, channels, height, width, generator=generator) for _ in range(2))
    metrics = ImageMetrics(("psnr", "ssim"))
    same = metrics(first, first)
    assert float(same["psnr"]) == PSNR_LIMIT
    assert float(same["ssim"]) == pytest.approx(1, abs=1e-6)
    forth, back = metrics(first, second), metrics(second, first)
    for name in forth:
        assert float(forth[name]) == pytest.approx(float(back[name]), abs=1e-5)
    assert float(forth["psnr"]) < PSNR_LIMIT


def test_small_images_have_no_ssim_but_a_psnr():
    small = ImageMetrics(PIXEL_METRICS)(torch.zeros(2, 3, 8, 30), torch.ones(2, 3, 8, 30))
    assert small["psnr"].tolist() == [0, 0]
    assert all(small[name].isnan().all() for name in ("ssim", "ssim_y", "ms_ssim"))
    assert ImageMetrics(("ms_ssim",))(torch.rand(1, 3, 160, 200), torch.rand(1, 3, 160, 200))["ms_ssim"].isnan()
    assert not ImageMetrics(("ms_ssim",))(torch.rand(1, 3, 161, 161), torch.rand(1, 3, 161, 161))["ms_ssim"].isnan()


@pytest.mark.parametrize(
    ("restored", "clean", "words"),
    [
        (torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17), "differ in shape: (1, 3, 16, 16) and (1, 3, 16, 17)"),
        (torch.rand(1, 3, 16, 16) * 2 - 1, torch.rand(1, 3, 16, 16), "(x + 1) / 2"),
        (torch.rand(1, 3, 16, 16) * 255, torch.rand(1, 3, 16, 16), "expect [0, 1]"),
        (torch.rand(1, 3, 16, 16), torch.full((1, 3, 16, 16), torch.nan), "Clean images hold NaN"),
        (torch.full((1, 3, 16, 16), torch.inf), torch.rand(1, 3, 16, 16), "Restored images hold NaN or infinity"),
        (torch.rand(0, 3, 16, 16), torch.rand(0, 3, 16, 16), "empty"),
        (torch.rand(3, 16, 16), torch.rand(3, 16, 16), "(B, 3, H, W)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.rand(1, 3, 16, 16), "divide 8-bit values by 255"),
    ],
)
def test_wrong_input_is_an_error_that_says_so(restored, clean, words):
    with pytest.raises(UserError) as error:
        ImageMetrics(("psnr", "ssim"))(restored, clean)
    assert words in str(error.value)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'psrn'.*psnr, psnr_y, ssim"):
        ImageMetrics(("psnr", "psrn"))
    with pytest.raises(UserError, match="none"):
        ImageMetrics(())


def test_autocast_does_not_reach_the_scores():
    degraded, clean = (tensor(image) for image in pairs()[0])
    plain = ImageMetrics(PIXEL_METRICS)(degraded, clean)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ImageMetrics(PIXEL_METRICS)(degraded, clean)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_lpips_without_weights_says_where_they_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = ImageMetrics(("psnr", "lpips"))
    assert set(metrics(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))) == {"psnr"}
    assert str(tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth") in metrics.unavailable["lpips"]
    assert set(metrics.unavailable) == {"lpips"}


def test_lpips_refuses_a_damaged_file_and_scores_with_a_whole_one(tmp_path, monkeypatch):
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    network = alexnet()
    network.classifier = torch.nn.Sequential()  # 3.7 of 61 M parameters are used
    torch.save(network.state_dict(), path)
    assert "damaged" in ImageMetrics(("lpips",)).unavailable["lpips"]

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    renamed = path.with_name(f"alexnet-owt-{digest[:8]}.pth")
    path.rename(renamed)
    monkeypatch.setattr(metrics_module, "ALEXNET_FILE", renamed.name)

    def local_alexnet(weights=None):
        network.load_state_dict(torch.load(renamed, weights_only=True))
        return network

    monkeypatch.setattr("torchvision.models.alexnet", local_alexnet)
    metrics = ImageMetrics(("lpips",))
    assert not metrics.unavailable
    clean = torch.cat([tensor(pair[1])[..., :96, :96] for pair in pairs()[:2]])
    values = metrics((clean * 0.7).clamp(0, 1), clean)["lpips"]
    assert values.shape == (2,)
    assert (values > 0).all()
    assert float(metrics(clean, clean)["lpips"].max()) == pytest.approx(0, abs=1e-6)


def test_no_reference_metrics_without_pyiqa_are_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    metrics = ImageMetrics(("psnr", "niqe", "musiq", "clipiqa"))
    assert set(metrics.unavailable) == {"niqe", "musiq", "clipiqa"}
    assert ".[metrics]" in metrics.unavailable["niqe"]
    assert set(metrics(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))) == {"psnr"}


def test_a_failing_download_of_pyiqa_is_reported(monkeypatch):
    class Fake:
        @staticmethod
        def create_metric(name, **options):
            raise OSError("urlopen error: no network\nmore lines")

    monkeypatch.setitem(sys.modules, "pyiqa", Fake)
    assert ImageMetrics(("niqe",)).unavailable["niqe"] == (
        "pyiqa could not load its weights (OSError: urlopen error: no network)"
    )


def test_no_reference_metrics_need_no_clean_photo(monkeypatch):
    class Brightness(torch.nn.Module):
        def forward(self, image):
            return image.mean()[None]

    class Fake:
        @staticmethod
        def create_metric(name, **options):
            return Brightness()

    monkeypatch.setitem(sys.modules, "pyiqa", Fake)
    values = ImageMetrics(("psnr", "niqe"))(torch.full((2, 3, 64, 64), 0.25), None)
    assert values["niqe"].tolist() == [0.25, 0.25]
    assert set(values) == {"niqe"}


def test_luma_is_matlabs():
    colors = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0]]).float().view(3, 3, 1, 1)
    assert (luma(colors).flatten() * 255).tolist() == pytest.approx([16, 235, 81.481], abs=1e-3)


def test_importing_the_metrics_imports_no_metric_library():
    import subprocess

    heavy = "('torchmetrics', 'pyiqa', 'lightning')"
    code = f"import sys, restorevar.evaluation.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_metric_says_what_it_is():
    assert all(info.definition and info.label for info in METRICS.values())
    assert Path(metrics_module.ALEXNET_FILE).stem.endswith("7be5be79")
