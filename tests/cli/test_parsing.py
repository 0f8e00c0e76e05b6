from pathlib import Path
from typing import Literal

import pytest

from restorevar.cli.parsing import function_parser


def paint(
    paths: list[Path],
    output: Path,
    tile: int | Literal["auto"] = "auto",
    color_fix: Literal["none", "wavelet"] = "none",
    strength: float | None = None,
    overwrite: bool = False,
) -> int:
    """Paints photos.

    Args:
        paths: Photos.
        output: Where to.
        tile: Side of the tiles.
        color_fix: Which fix.
        strength: How much.
        overwrite: Paint again.
    """
    return 0


def chain(
    config: Path, output: Path | None = None, overlay: list[Path] | None = None, overrides: list[str] | None = None
) -> int:
    """Chains.

    Args:
        config: File.
        output: Folder.
        overlay: Files.
        overrides: The rest.
    """
    return 0


def parse(words):
    return function_parser("restorevar paint", paint).arguments(words)


def refused(capsys, words):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert stop.value.code == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert hint == "(see: restorevar paint --help)"
    return message


def test_words_without_a_name_are_the_paths():
    values = parse(["a.jpg", "b", "--output", "out"])
    assert values["paths"] == [Path("a.jpg"), Path("b")]
    assert values["output"] == Path("out")
    assert values["tile"] == "auto"
    assert values["overwrite"] is False


@pytest.mark.parametrize("spelling", ["--color-fix", "--color_fix"])
def test_dashes_and_underscores_are_the_same(spelling):
    assert parse(["a", "--output", "out", spelling, "wavelet"])["color_fix"] == "wavelet"
    assert parse(["a", "--output", "out", f"{spelling}=wavelet"])["color_fix"] == "wavelet"


@pytest.mark.parametrize("spelling", ["--no-overwrite", "--no_overwrite"])
def test_a_flag_has_no_negative_form_that_could_be_taken_for_it(spelling, capsys):
    with pytest.raises(SystemExit):
        parse(["a", "--output", "out", spelling])
    assert spelling in capsys.readouterr().err


def test_a_flag_needs_no_value():
    assert parse(["a", "--output", "out", "--overwrite", "--tile", "64"]) | {"strength": None} == {
        "paths": [Path("a")],
        "output": Path("out"),
        "tile": 64,
        "color_fix": "none",
        "strength": None,
        "overwrite": True,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--outptu", "x"], "error: unknown setting '--outptu' - did you mean '--output'?"),
        (["a", "--output", "x", "--til=3"], "error: unknown setting '--til=3'"),
        (["a", "--output", "x", "--tile", "big"], "error: tile: got 'big'; expected int or one of auto"),
        (["a", "--output", "x", "--tile", "1e3"], "error: tile: got '1e3'; expected int or one of auto"),
        (["a", "--output", "x", "--color-fix", "wave"], "error: color_fix: got 'wave'; expected one of none, wavelet"),
        (["--output", "x"], "error: missing: PATH"),
        (["a"], "error: missing: --output"),
        (["a", "--output", "x", "b"], "error: unexpected word 'b'; words without a -- name go together"),
        (["a", "--output"], "error: argument --output: expected one argument"),
    ],
)
def test_an_error_is_one_line_with_the_way_out(words, message, capsys):
    assert refused(capsys, words).startswith(message.replace("--til=3'", "--til"))


def test_a_file_that_looks_like_an_option_is_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-o.jpg").touch()
    assert "write './-o.jpg'" in refused(capsys, ["-o.jpg", "--output", "x"])


def test_help_shows_the_docstring_with_dashes(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--color-fix" in text
    assert "--color_fix" not in text
    assert "Paint again." in text
    assert "PATH [PATH ...]" in text


def test_overrides_take_what_is_not_ours():
    parser = function_parser("restorevar chain", chain)
    words = ["--config", "p.yaml", "--trainer.max_steps", "3", "--output=o", "--data.batch_size=2"]
    assert parser.arguments(words) == {
        "config": Path("p.yaml"),
        "output": Path("o"),
        "overlay": None,
        "overrides": ["--trainer.max_steps", "3", "--data.batch_size=2"],
    }


def test_an_option_that_takes_a_list_takes_one_value_and_repeats():
    parser = function_parser("restorevar chain", chain)
    words = ["--config", "c.yaml", "--trainer.max_steps", "3"]
    assert parser.arguments(words)["overlay"] is None
    assert parser.arguments([*words, "--overlay", "a.yaml"])["overlay"] == [Path("a.yaml")]
    values = parser.arguments(["--overlay", "a.yaml", "--overlay=b.yaml", *words])
    assert values["overlay"] == [Path("a.yaml"), Path("b.yaml")]
    assert values["overrides"] == ["--trainer.max_steps", "3"]
    assert parser.arguments([*words, "--overlay", "[a.yaml, b.yaml]"])["overlay"] == [Path("a.yaml"), Path("b.yaml")]
