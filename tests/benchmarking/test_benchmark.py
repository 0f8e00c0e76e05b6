import dataclasses
import functools
import json
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from restorevar import RestoreVAR, memory
from restorevar.benchmarking import benchmark as benchmark_module
from restorevar.benchmarking import timing
from restorevar.benchmarking.benchmark import processor_name, run_benchmark
from restorevar.benchmarking.cost import Cost, Rates, count, counting, rate_calls
from restorevar.benchmarking.parts import measure_parts
from restorevar.benchmarking.timing import interleave, peak_memory
from restorevar.cli import main
from restorevar.errors import UserError
from restorevar.models import GateConfig, RefinerConfig, RestoreVARConfig, TransformerConfig
from restorevar.models.products import attention, linear
from tests.models.small import ATTENTION_REFINER, DETAIL, TRANSFORMER, randomize, small_config, small_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> RestoreVAR:
    built = RestoreVAR(small_config(detail=DETAIL)).eval()
    randomize(built)
    return built


@pytest.fixture(scope="module")
def whole_model() -> RestoreVAR:
    """With all that the shipped model has: means of the first scales, detail path and gate."""
    detail, transformer = dataclasses.replace(DETAIL, photo_width=8), dataclasses.replace(TRANSFORMER, mean_scales=2)
    return small_model(detail=detail, transformer=transformer, gate=GateConfig(hidden=8))


def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "rate_calls", lambda *_, side: rate_calls(*_, side=32, pixels=8))


class TestTiming:
    def test_calls_take_turns(self) -> None:
        order: list[str] = []
        measured = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU, warm_up=1)
        assert order == ["a", "b"] * 4
        assert len(measured["a"].seconds) == 3

    @pytest.mark.skipif(memory.total_memory(CPU) is None, reason="needs /proc")
    def test_peak_memory_sees_what_is_freed_again(self) -> None:
        idle = peak_memory(lambda: None, CPU)
        if idle is None:
            pytest.skip("the kernel does not reset the peak")
        assert peak_memory(lambda: torch.ones(64, 2**20), CPU) - idle > 200 * 2**20

    def test_available_memory_keeps_a_fifth_free(self, monkeypatch) -> None:
        monkeypatch.setattr(memory, "_meminfo", {"MemTotal": 1000, "MemAvailable": 700}.get)
        assert timing.available_memory(CPU) == 500
        monkeypatch.setattr(memory, "total_memory", lambda device: None)
        assert timing.available_memory(CPU) is None


class TestCost:
    def test_convolutions_of_a_small_model(self, model) -> None:
        counted = []

        def add(layer: torch.nn.Module, _: object, result: torch.Tensor) -> None:
            counted.append(2 * result.numel() * layer.weight[0].numel())

        hooks = [layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
        with torch.backends.mkldnn.flags(enabled=False):  # where oneDNN is asked directly, layers are not called
            model.generate(torch.zeros(1, 3, *model.image_size))
        for hook in hooks:
            hook.remove()
        assert count(model).convolutions == sum(counted)

    def test_products_are_counted_whichever_library_does_them(self) -> None:
        x, heads = torch.ones(5, 32), torch.ones(1, 2, 7, 16)
        with torch.no_grad(), counting() as counter:
            linear(x, torch.ones(8, 32))
            attention(heads, heads, heads)
        assert counter.get_total_flops() == 2 * 5 * 32 * 8 + 2 * (2 * 2 * 7 * 7 * 16)

    @pytest.mark.slow
    def test_paper_size_costs_what_was_counted_by_hand(self) -> None:
        with torch.device("meta"):
            paper = RestoreVAR(RestoreVARConfig(transformer=TransformerConfig(), refiner=RefinerConfig()))
        cost = count(paper)
        assert cost.convolutions == pytest.approx(2450e9, rel=0.02)  # encoder 867, decoder 1583
        assert cost.products == pytest.approx(1620e9, rel=0.03)

    def test_nothing_in_a_restoration_depends_on_values(self, model, whole_model) -> None:
        # fake tensors have no values: what runs with them never waits for the device, as CUDA graphs need it
        photos = torch.zeros(2, 3, *model.image_size)
        for network in (model, whole_model):
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = mode.from_tensor(photos)
                assert network.generate(fake).image.shape == photos.shape

    def test_nothing_in_a_restoration_is_copied_to_the_device(self, whole_model, monkeypatch) -> None:
        # a tensor made of numbers comes from the processor's memory, which no CUDA graph may wait for
        def refuse(*_: object, **__: object) -> None:
            pytest.fail("a tensor was made of numbers")

        for place, name in (
            (torch, "tensor"),
            (torch, "as_tensor"),
            (torch, "from_numpy"),
            (torch.Tensor, "new_tensor"),
        ):
            monkeypatch.setattr(place, name, refuse)
        with torch.backends.mkldnn.flags(enabled=False):  # the path of other devices
            whole_model.generate(torch.zeros(2, 3, *whole_model.image_size))

    def test_floor(self) -> None:
        assert Rates(product=10, fast_product=20, convolution=5).floor(Cost(50, 40)) == 12


def test_parts_cover_a_restoration(model) -> None:
    parts = measure_parts(model, torch.zeros(1, 3, *model.image_size), repeats=1)
    assert list(parts) == ["encoder", "scale 1", "scale 2", "scale 3", "scale 4", "refiner", "decoder"]
    assert all(len(part.seconds) == 1 for part in parts.values())


class TestRun:
    def test_command_writes_results(self, model, tmp_path, capsys, monkeypatch) -> None:
        small_rates(monkeypatch)
        model.save_pretrained(tmp_path / "model")
        words = ["--precision", "float32", "--repeats", "2", "--batch", "[3]", "--size", "[40x30]", "--device", "cpu"]
        code = main(["benchmark", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "results"), *words])
        assert code == 0
        results = json.loads((tmp_path / "results" / "benchmark.json").read_text())
        own, batch = results["rows"]
        assert (own["batch"], batch["batch"]) == (1, 3)
        assert len(own["seconds"]) == 2
        assert own["median"] > 0
        (size,) = results["sizes"]
        assert (size["width"], size["height"]) == (40, 30)
        assert results["floor"] == pytest.approx(
            results["operations"]["convolutions"] / results["rates"]["convolution"]
            + results["operations"]["matrix products"]
            / max(results["rates"]["product"], results["rates"]["fast_product"])
        )
        assert results["derived"]["over_floor"] == pytest.approx(own["median"] / results["floor"])
        assert "scale 4" in results["parts"]
        assert "GFLOP" in capsys.readouterr().out

    def test_both_precisions_in_one_go(self, tmp_path, monkeypatch) -> None:
        small_rates(monkeypatch)
        network = RestoreVAR(small_config(refiner=ATTENTION_REFINER)).eval()
        randomize(network)
        network.save_pretrained(tmp_path / "model")
        words = ["--precision", "both", "--repeats", "1", "--peer", "[plain]", "--device", "cpu"]
        assert main(["benchmark", "--model", str(tmp_path / "model"), "--output", str(tmp_path), *words]) == 0
        for precision in ("float32", "bfloat16"):
            results = json.loads((tmp_path / precision / "benchmark.json").read_text())
            assert results["precision"] == precision
            assert results["derived"]["over_own_time"]["plain, float32, batch 1"] > 0

    def test_rows_that_would_not_fit_say_so(self, model, monkeypatch) -> None:
        small_rates(monkeypatch)
        monkeypatch.setattr(benchmark_module, "available_memory", lambda device: 0)
        monkeypatch.setattr(benchmark_module, "peak_memory", lambda call, device: (call(), next(peaks))[1])
        peaks = iter([100, 200])
        report = run_benchmark(model, "small", repeats=1, batches=[4], peers=["diffusion"], sizes=[(70, 50)])
        skipped = [row for row in [*report.rows, *report.sizes] if row.median is None]
        assert [row.name for row in skipped] == ["latent diffusion", "small", "small, tiles"]
        assert all("skipped: needs about" in row.note for row in skipped)
        assert all(not math.isnan(part) for part in report.parts.values())

    @pytest.mark.parametrize("name", ["diffusion step", "product", "plain"])
    def test_a_model_may_be_called_anything(self, model, name, monkeypatch) -> None:
        small_rates(monkeypatch)
        report = run_benchmark(model, name, repeats=1)
        assert [row.name for row in report.rows] == [name]
        assert report.own.median is not None

    def test_what_was_captured_or_compiled_is_gone_before_the_later_rows(self, model, monkeypatch) -> None:
        small_rates(monkeypatch)
        held: list[weakref.ref] = []

        def compile(call: Callable) -> Callable:
            fast = functools.partial(call)
            held.append(weakref.ref(fast))
            return fast

        def parts(*_: object) -> dict:
            assert held[0]() is None
            return {}

        monkeypatch.setattr(torch, "compile", compile)
        monkeypatch.setattr(benchmark_module, "measure_parts", parts)
        report = run_benchmark(model, "small", repeats=1, compiled=True)
        assert [row.name for row in report.rows] == ["small", "small, compiled"]
        assert report.rows[1].note.startswith("first call")

    def test_the_plain_peer_refuses_a_model_of_another_kind(self, monkeypatch) -> None:
        model = RestoreVAR(small_config(detail=DETAIL)).eval()
        with pytest.raises(UserError, match="this one has detail"):
            run_benchmark(model, "ours", repeats=1, peers=["plain"])

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--size", "[big]"], "size 'big'; expected WIDTHxHEIGHT"),
            (["--batch", "[0]"], "batch 0; expected a positive number"),
            (["--repeats", "0"], "repeats is 0; expected at least 1"),
            (["--output", "taken"], "taken is a file; expected a folder"),
            (["--model", "tokenizer"], "tokenizer holds a tokenizer only"),
            (["--model", "detail", "--peer", "plain"], "this one has detail"),
        ],
    )
    def test_mistakes(self, words, message, tmp_path, capsys, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        RestoreVAR(small_config(transformer=None, refiner=None)).save_pretrained("tokenizer")
        RestoreVAR(small_config(detail=DETAIL)).save_pretrained("detail")
        (tmp_path / "taken").write_text("mine")
        assert main(["benchmark", "--output", "new", *words]) == 2
        assert message in capsys.readouterr().err
        assert (tmp_path / "taken").read_text() == "mine"
        assert not (tmp_path / "new").exists()


def test_processors_are_named_by_generation() -> None:
    facts = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"
    assert processor_name(facts) == "AMD EPYC (family 25, model 17)"
    assert processor_name("model name\t: Something\n") == "Something"
    assert processor_name("processor\t: 0\nFeatures\t: fp asimd\n") is None  # Arm
