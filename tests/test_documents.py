"""What the README and the documents tell people to type exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from restorevar.cli import pipeline
from restorevar.cli.lightning import read_config
from restorevar.cli.main import COMMANDS, LIGHTNING_VERBS, resolve
from restorevar.cli.parsing import function_parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path, language: str) -> Iterator[str]:
    """Fenced code of one language."""
    text = document.read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines() -> Iterator[tuple[Path, list[str]]]:
    """Words of every line of shell in the documents; lines that end in a backslash go on."""
    for document in DOCUMENTS:
        for language in ("bash", "sh", "shell", "console"):
            for block in blocks(document, language):
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words:
                        yield document, words


LINES = [
    pytest.param(words, id=f"{document.relative_to(ROOT)}: {' '.join(words)[:60]}")
    for document, words in command_lines()
]


@pytest.mark.parametrize("words", LINES)
def test_command_exists(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in words if "=" not in word or word.startswith("-")]  # NAME=value before a command
    program = Path(words[0]).name if words else ""
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif program == "restorevar":
        check_restorevar(words[1:])


def check_restorevar(words: list[str]) -> None:
    name, rest = words[0], words[1:]
    for config in (word for word in rest if word.startswith("configs/")):
        assert (ROOT / config).is_file(), config
    if name.startswith("-"):
        return
    if name in LIGHTNING_VERBS:
        read_config([name, *without_files_of_the_reader(rest)])
        return
    if name == "pipeline":
        check_pipeline(without_files_of_the_reader(rest))
        return
    target = resolve(COMMANDS[name].target)
    if isinstance(target, dict):
        name, target = f"{name} {rest[0]}", target[rest[0]]
    parser = function_parser(f"restorevar {name}", target)
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    unknown = {option for option in options if option not in parser._option_string_actions and option != "--help"}
    assert not unknown or parser.takes_overrides


def without_files_of_the_reader(words: list[str]) -> list[str]:
    """Without `...` and options that name a file which is not in this checkout."""
    kept: list[str] = []
    for word in words:
        if word == "...":
            continue
        if kept and kept[-1] in ("--config", "--overlay") and not (ROOT / word).is_file():
            kept.pop()
        else:
            kept.append(word)
    return kept


def check_pipeline(words: list[str]) -> None:
    """Parses the settings of every stage."""
    own = {"config": None, "output": Path("runs"), "overlay": [], "overrides": []}
    given = own | function_parser("restorevar pipeline", pipeline.pipeline).arguments(words)
    if given["config"] is None:
        return
    stages, _ = pipeline.read_pipeline(given["config"])
    for stage in stages:
        root = given["output"] or Path("runs")
        arguments = pipeline.stage_arguments(stage, root, given["overlay"] or [], given["overrides"] or [], stages)
        pipeline.check_stage(stage, arguments, root / stage.name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_in_fences_that_are_checked(document: Path) -> None:
    for block in blocks(document, ""):
        assert not re.search(r"^(PYTHONPATH=\S+ )?(restorevar|python|make) ", block, re.MULTILINE), block


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_compiles(document: Path) -> None:
    for block in blocks(document, "python"):
        compile(block, str(document), "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"(https?|mailto):|#", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == explained
    assert {"setup", "demo", "demo-train", "test", "lint", "docs", "help"} <= targets
