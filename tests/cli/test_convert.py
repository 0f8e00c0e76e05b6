from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from restorevar import RestoreVAR
from restorevar.cli import main
from restorevar.errors import UserError
from restorevar.files import sha256
from tests.golden.seeded import golden, tiny_tokenizer, tiny_transformer
from tests.models.small import small_model

SCALES = "1,2,3,4,6,8"


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    torch.save(tiny_tokenizer(), tmp_path / "vae.pth")
    save_file(tiny_transformer(), tmp_path / "var.safetensors")
    return tmp_path / "vae.pth", tmp_path / "var.safetensors"


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def test_there_and_back(published: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, back = tmp_path / "model", tmp_path / "back"
    sizes = ("--scales", SCALES, "--refiner-heads", 3)
    assert run("--tokenizer", published[0], "--transformer", published[1], "--output", folder, *sizes) == 0
    assert f"sha256 {sha256(folder / 'model.safetensors')}" in capsys.readouterr().out
    assert torch.equal(RestoreVAR.from_pretrained(folder).generate(golden()["degraded"]).tokens, golden()["tokens"])

    assert run("--model", folder, "--output", back) == 0
    printed = capsys.readouterr().out
    for name, expected in (("vae_restorevar.ckpt", tiny_tokenizer()), ("restorevar.pth", tiny_transformer())):
        assert f"sha256 {sha256(back / name)}" in printed
        weights = torch.load(back / name, weights_only=True)
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
    # the published files say their scales themselves
    again = tmp_path / "again"
    files = ("--tokenizer", back / "vae_restorevar.ckpt", "--transformer", back / "restorevar.pth")
    assert run(*files, "--output", again, "--refiner-heads", 3) == 0
    assert sha256(again / "model.safetensors") == sha256(folder / "model.safetensors")


def test_tokenizer_alone_there_and_back(published: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("--tokenizer", published[0], "--output", tmp_path / "model", "--scales", SCALES) == 0
    assert run("--model", tmp_path / "model", "--output", tmp_path / "back") == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["vae_restorevar.ckpt"]
    # beside the transformer of another model it would be half of a pair that does not fit
    (tmp_path / "back" / "restorevar.pth").write_bytes(b"another's")
    before = (tmp_path / "back" / "vae_restorevar.ckpt").read_bytes()
    assert run("--model", tmp_path / "model", "--output", tmp_path / "back", "--overwrite") == 2
    assert (tmp_path / "back" / "vae_restorevar.ckpt").read_bytes() == before


def test_output_that_exists(published: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--tokenizer", published[0], "--output", tmp_path / "model", "--scales", SCALES)
    assert run(*words) == 0
    before = (tmp_path / "model" / "config.json").read_bytes()
    assert run(*words) == 2
    assert "config.json exists already; give another --output, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either --tokenizer"),
        (["--tokenizer", "a.pth", "--model", "b"], "expected either --tokenizer"),
        (["--model", "b", "--scales", "1,2"], "--scales goes with --tokenizer"),
        (["--model", "nothing"], "no model 'nothing'"),
        (["--tokenizer", "gone.pth", "--scales", "1,2"], "no tokenizer file at gone.pth"),
        (["--tokenizer", "gone.pth", "--scales", "1,two"], "--scales has 'two'; expected sides"),
        (["--tokenizer", "gone.pth", "--scale", "1"], "did you mean '--scales'?"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["missing", "left over", "truncated"])
def test_faulty_weights_leave_nothing(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny_tokenizer()
    if fault == "missing":
        del weights["quant_conv.bias"]
    if fault == "left over":
        weights["quant_conv.extra"] = torch.ones(1)
    torch.save(weights, tmp_path / "vae.pth")
    if fault == "truncated":
        (tmp_path / "vae.pth").write_bytes((tmp_path / "vae.pth").read_bytes()[:50_000])
    assert run("--tokenizer", tmp_path / "vae.pth", "--output", tmp_path / "out", "--scales", SCALES) == 2
    assert {"missing": "missing: quant_conv.bias", "left over": "left over: quant_conv.extra"}.get(
        fault, "cannot be read"
    ) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--refiner-heads", 0], "refiner heads is 0; expected whole numbers from 1"),
        (["--refiner-heads", 3, "--scales", "1,2,8"], "var.safetensors: weight 'lvl_embed.weight' has shape (6, 128)"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(
    words: list, told: str, published: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--tokenizer", published[0], "--transformer", published[1], "--output", tmp_path / "out")
    assert run(*files, "--scales", SCALES, *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_model_without_a_published_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models.small import CONVOLUTION_REFINER

    small_model(refiner=CONVOLUTION_REFINER).save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output", tmp_path / "out") == 2
    assert "refiner.kind, which has no published form" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scales_as_typed() -> None:
    from restorevar.cli.convert import parse_scales

    assert parse_scales("[1, 2x3,4x6]") == [1, (2, 3), (4, 6)]
    assert parse_scales(None) is None
    for wrong in ("", "1,,2", "1 2", "-1"):
        with pytest.raises(UserError, match="expected sides separated by commas"):
            parse_scales(wrong)
