"""Dispatch on the first word; nothing heavy is imported before the command is known."""

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

from restorevar.errors import UserError
from restorevar.memory import request_large_pages

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """One word of the command line.

    Attributes:
        target: ``module:attribute`` of a typed function, or of a dictionary of them by their second word.
        summary: One line for ``restorevar --help``.
    """

    target: str
    summary: str


LIGHTNING_VERBS = {
    "fit": "train one stage from a configuration file",
    "validate": "score a stage's checkpoint on the validation photos",
    "test": "score a model on test photos by a stated protocol",
    "predict": "restore the photos of a data module and write them",
}

COMMANDS = {
    "pipeline": Command("restorevar.cli.pipeline:pipeline", "train all stages, each from the last one's export"),
    "restore": Command("restorevar.cli.restore:restore", "restore photos and folders of photos"),
    "web": Command("restorevar.cli.web:web", "a page in the browser to try a model on a photo"),
    "degrade": Command("restorevar.cli.degrade:degrade", "make degraded copies of photos"),
    "manifest": Command("restorevar.cli.manifest:manifest", "build and check lists of training pairs"),
    "convert": Command("restorevar.cli.convert:convert", "published weights to a model folder and back"),
    "consolidate": Command("restorevar.cli.consolidate:consolidate", "a training checkpoint to a model folder"),
    "export": Command("restorevar.cli.export:export", "a package that restores without the training code"),
    "benchmark": Command("restorevar.cli.benchmark:benchmark", "speed, memory and cost against limits and peers"),
    "demo": Command("restorevar.cli.demo:demo", "degrade held-out photos, restore, score and picture them"),
}


def overview() -> str:
    """The text of ``restorevar --help``."""
    lines = ["usage: restorevar COMMAND [options]", "", "All-in-one image restoration by visual autoregression.", ""]
    groups = {
        "training and evaluation": {name: LIGHTNING_VERBS[name] for name in LIGHTNING_VERBS}
        | {"pipeline": COMMANDS["pipeline"].summary},
        "using a model": {name: command.summary for name, command in COMMANDS.items() if name != "pipeline"},
    }
    for title, commands in groups.items():
        lines += [f"{title}:", *(f"  {name:<11} {summary}" for name, summary in commands.items()), ""]
    lines.append("`restorevar COMMAND --help` explains a command.")
    return "\n".join(lines)


def resolve(target: str) -> Callable[..., int | None] | dict[str, Callable[..., int | None]]:
    """Imports the function (or dictionary of functions) behind ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run_function(name: str, function: Callable[..., int | None], args: Sequence[str]) -> int:
    """Parses ``args`` by the function's signature and calls it.

    Args:
        name: The words typed so far, for usage texts.
        function: A typed function with a Google docstring.
        args: What follows on the command line.

    Returns:
        Its exit code; None counts as 0.
    """
    from restorevar.cli.parsing import function_parser

    parser = function_parser(f"restorevar {name}", function)
    return function(**parser.arguments(args)) or 0


def dispatch(args: Sequence[str]) -> int:
    """Runs one command; errors leave as exceptions.

    Args:
        args: The words after ``restorevar``.

    Returns:
        The exit code.

    Raises:
        UserError: On an unknown command, or from the command.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
        return 0
    if args[0] in ("-V", "--version", "version"):
        from restorevar import __version__

        sys.stdout.write(f"restorevar {__version__}\n")
        return 0
    name, rest = args[0], list(args[1:])
    if name in LIGHTNING_VERBS:
        from restorevar.cli.lightning import run_verb

        run_verb(name, rest)
        return 0
    if name not in COMMANDS:
        raise UserError(unknown_word("command", name, [*LIGHTNING_VERBS, *COMMANDS]))
    if name in ("pipeline", "demo"):  # may train, and Lightning has its own way with SIGTERM
        return run_command(name, rest)
    with termination_as_interrupt():
        return run_command(name, rest)


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """What Ctrl-C cleans up, a job scheduler's or service manager's SIGTERM does too."""
    before = signal.getsignal(signal.SIGTERM)
    # elsewhere Python allows no handlers; what others have set or ignored stays
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(name: str, rest: Sequence[str]) -> int:
    """Runs one of `COMMANDS`.

    Args:
        name: Its word.
        rest: What follows on the command line.

    Returns:
        The exit code.
    """
    target = resolve(COMMANDS[name].target)
    if not isinstance(target, dict):
        return run_function(name, target, rest)
    if not rest or rest[0] in ("-h", "--help"):
        summaries = [f"  {word:<10} {(target[word].__doc__ or '').splitlines()[0]}" for word in target]
        sys.stdout.write(
            "\n".join([f"usage: restorevar {name} {{{','.join(target)}}} [options]", "", *summaries]) + "\n"
        )
        return 0 if rest else 2
    if rest[0] not in target:
        raise UserError(unknown_word(f"word after '{name}':", rest[0], list(target)))
    return run_function(f"{name} {rest[0]}", target[rest[0]], rest[1:])


def unknown_word(what: str, word: str, known: Sequence[str]) -> str:
    """The message for a word that is none of ``known``, with the nearest one named."""
    import difflib

    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f"unknown {what} '{word}'" + (
        f" - did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
    )


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that moment: in-process callers may exchange it between two commands."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up_logging() -> None:
    """Our messages go to standard error, so that output can be piped; other packages' loggers are left alone."""
    logger = logging.getLogger("restorevar")
    if not logger.handlers:
        handler = _StandardErrorHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def main(args: list[str] | None = None) -> int:
    """The entry point of ``restorevar``.

    Args:
        args: Words of the command line; None takes them from the process.

    Returns:
        The exit code: 0 done, 1 some files failed, 2 a mistake by the user (one line on standard error),
        130 interrupted (Ctrl-C, or SIGTERM but in training).
    """
    set_up_logging()
    request_large_pages()
    try:
        return dispatch(sys.argv[1:] if args is None else args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except SystemExit as error:  # argparse after --help and after its own errors
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
            return 1
        return error.code or 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:  # such as a full disk, or a folder that cannot be made
        if isinstance(error, BrokenPipeError):  # `restorevar ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            sys.stderr.write(f"error: {error}\n")
        return 1
