"""Parsers whose errors are one line with the nearest right name, for our own functions and for Lightning's verbs."""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import docstring_parser
from jsonargparse import ArgumentParser

__all__ = ["FunctionParser", "ShortErrors", "function_parser", "shorten"]


class ShortErrors:
    """Mixin for parsers: an error is one line on standard error and exit code 2 (jsonargparse's own take sixty)."""

    prog: str
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the short form of a parser's message and leaves.

        Args:
            message: What jsonargparse would have printed.
            ex: The exception behind it.

        Raises:
            SystemExit: With code 2; jsonargparse's own error where the parser is told not to exit.
        """
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write(f"error: {shorten(cast(ArgumentParser, parser), message, ex)}\n")
        sys.stderr.write(f"(see: {parser.prog.replace(' [options]', '')} --help)\n")
        raise SystemExit(2)


def shorten(parser: ArgumentParser, message: str, ex: BaseException | None = None) -> str:
    """One line that says what was found and what was expected.

    Args:
        parser: The parser that stopped.
        message: jsonargparse's message, often many lines.
        ex: The exception behind it, which knows the innermost parser (that of a nested class).
    """
    patterns: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"does not accept option '([^']+)'", lambda m: _unknown(m[1], _settings(parser))),
        (r"[Kk]ey '([^']+)' is not expected", lambda m: _unknown(m[1], _settings(parser))),
        (r"[Uu]nrecognized arguments: (.*)", lambda m: _unrecognized(m[1], parser)),
        (r"Option '([^']+)' is not accepted", lambda m: _unknown(m[1], _settings(_innermost(ex) or parser))),
        (r"Problem with given class_path '([^']+)':\s+(.*?)(?:\n\s+- Expected|\n\s*Given|$)", _class_problem),
        (r"the following arguments are required: (.*)", lambda m: _missing(m[1], parser)),
        (r"File does not exist: '?([^'\n]+)'?", lambda m: _no_file(m[1])),
        (r'Parser key "([^"]+)":(.*)', lambda m: _bad_value(m) + _range(m[1], parser)),
    ]
    for pattern, phrase in patterns:
        if match := re.search(pattern, message, re.DOTALL):
            return phrase(match)
    return " ".join(message.split())


def _settings(parser: ArgumentParser) -> list[str]:
    """Names that a parser knows, as they are typed."""
    hidden = ("help", "subcommand", "print_config", "print_shtab")
    return [action.dest for action in parser._actions if action.dest and not action.dest.endswith(hidden)]


def _innermost(ex: BaseException | None) -> ArgumentParser | None:
    """The parser that raised: a nested class or dataclass has one of its own, seen only in the traceback."""
    found = None
    trace = ex.__traceback__ if ex is not None else None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, ArgumentParser):
            found = owner
        trace = trace.tb_next
    return found


def _nearest(name: str, known: Iterable[str]) -> str | None:
    known = list(known)
    if near := difflib.get_close_matches(name, known, 1, 0.6):
        return near[0]
    # a wrong word inside a dotted name: compare the last words
    lasts = {option.rpartition(".")[2]: option for option in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], lasts, 1, 0.7)
    return lasts[near[0]] if near else None


def _unknown(name: str, known: Sequence[str], prefix: str = "") -> str:
    """``name`` may be deeper than the wrong word: every shorter form of it is tried too."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        near = _nearest(".".join(parts[:length]), known)
        if near is not None:
            return f"unknown setting '{prefix}{name}' - did you mean '{prefix}{near}'?"
    own = _own_settings()
    for part in parts:
        if part not in own and (close := difflib.get_close_matches(part, own, 1, 0.7)):
            return f"unknown setting '{prefix}{name}' - did you mean '{close[0]}'?"
    listed = [option for option in known if "." not in option and option != "print_shtab"]
    return f"unknown setting '{prefix}{name}'; there are: {', '.join(listed)}"


def _own_settings() -> list[str]:
    """Parameters of all our public classes: where the parser does not say which class it was in."""
    names: set[str] = set()
    for module in ("modules", "callbacks", "datamodules", "losses", "models", "optimization"):
        loaded = sys.modules.get(f"restorevar.{module}")
        classes = [getattr(loaded, name, None) for name in getattr(loaded, "__all__", [])]
        for cls in filter(inspect.isclass, classes):
            names.update(inspect.signature(cls.__init__).parameters)
    return sorted(names - {"self", "args", "kwargs"})


def _unrecognized(rest: str, parser: ArgumentParser) -> str:
    word = rest.split()[0]
    if not word.startswith("-"):
        return f"unexpected word '{word}'; words without a -- name go together, before the options"
    if Path(word).exists():
        return f"'{word}' is taken for an option; write './{word}' for the file"
    name = word.lstrip("-").partition("=")[0]
    known = [name.lstrip("-") for action in parser._actions for name in action.option_strings if name.startswith("--")]
    return _unknown(name, [option for option in known if not option.endswith(".help")], "--")


def _class_problem(match: re.Match[str]) -> str:
    path, why = match[1], " ".join(match[2].split())
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError):
        return f"class_path '{path}': no such module '{module_name}'"
    if not hasattr(module, name):
        public = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if inspect.isclass(v)]
        near = difflib.get_close_matches(name, public, 1, 0.6)
        hint = f" - did you mean '{module_name}.{near[0]}'?" if near else f"; it has: {', '.join(public)}"
        return f"class_path '{path}': '{module_name}' has no '{name}'{hint}"
    if option := re.search(r"Option '([^']+)' is not accepted", why):
        known = list(inspect.signature(getattr(module, name).__init__).parameters)[1:]
        return f"{_unknown(option[1], known)} ({path})"
    if inner := re.search(r'Parser key "([^"]+)":(.*)', why):
        return f"{_bad_value(inner)} ({path})"
    return f"{path}: {why}"


def _missing(names: str, parser: ArgumentParser) -> str:
    typed = []
    for name in names.split(", "):
        key = name.removeprefix("fit.").removeprefix("validate.").removeprefix("test.").removeprefix("predict.")
        action = next((action for action in parser._actions if action.dest == key), None)
        positional = action is not None and not action.option_strings
        typed.append(str(action.metavar or key) if positional and action else f"--{key.replace('_', '-')}")
    hint = "; give it in a file with --config" if "--model" in typed else ""
    return f"missing: {', '.join(typed)}{hint}"


def _no_file(name: str) -> str:
    folder = Path(name).parent
    siblings = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, siblings, 1, 0.6)
    return f"no file '{name}'" + (f" - did you mean '{folder / near[0]}'?" if near else "")


def _bad_value(match: re.Match[str]) -> str:
    key, rest = match[1], " ".join(match[2].split())
    if nested := re.search(r'Parser key "([^"]+)":(.*)', rest):
        return _bad_value(nested)
    kinds = "|".join(_plain_type(kind) for kind in re.findall(r"Expected (?:an? )?(.+?)(?=\. Got| - |$| Given)", rest))
    # of a union each kind has its say, and what was given comes last
    given = re.search(r"Given value: (.*)$", rest) or re.search(r"Got value: (.*)$", rest)
    if kinds and given:
        return f"{key}: got '{given[1]}'; expected {kinds.replace('|', ' or ')}"
    return f"{key}: {rest}"


def _range(name: str, parser: ArgumentParser) -> str:
    """The range of an option of our own commands, as the first sentence of its help states it."""
    if not isinstance(parser, FunctionParser):
        return ""
    text = next((str(action.help) for action in parser._actions if action.dest == name), "")
    match = re.search(r"\b\d[^.;,]*? to \d+(\.\d+)?|from \d+", text)
    return f", {match[0]}" if match else ""


def _plain_type(text: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as its words."""
    if literal := re.match(r"typing\.Literal\[(.*)\]", text):
        return "one of " + ", ".join(word.strip(" '\"") for word in literal[1].split(","))
    plain = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    return "none" if plain == "NoneType" else plain


class FunctionParser(ShortErrors, ArgumentParser):
    """Parser made from one function's signature; see :func:`function_parser`."""

    takes_overrides = False

    def arguments(self, args: Sequence[str]) -> dict[str, Any]:
        """Parses words and returns the function's keyword arguments.

        Args:
            args: Words after the command. Option names may be spelled with dashes or underscores.
        """
        words = [self._appending(word) for word in args]
        overrides: list[str] = []
        if self.takes_overrides:
            words, overrides = self._split(words)
        values = self.instantiate_classes(self.parse_args(words)).as_dict()
        return values | ({"overrides": overrides} if self.takes_overrides else {})

    def _appending(self, word: str) -> str:
        """An option that takes a list as its appending form, so that one value does, and repeating it adds another."""
        name, equals, value = word.partition("=")
        return f"{name}+{equals}{value}" if f"{name}+" in self._option_string_actions else word

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Our own options, and the options (with their values) that are somebody else's."""
        ours: list[str] = []
        others: list[str] = []
        current = ours
        for word in words:
            if word.startswith("--"):
                current = ours if word.partition("=")[0] in self._option_string_actions else others
            current.append(word)
        return ours, others


def function_parser(prog: str, function: Callable[..., int | None]) -> FunctionParser:
    """The parser of one command, from its signature and Google docstring.

    A parameter called ``paths`` takes the words without a name, a bool one that defaults to False is a bare flag,
    one called ``overrides`` takes whatever options nobody else knows (for Lightning).

    Args:
        prog: The words typed so far.
        function: A typed function.
    """
    docstring = docstring_parser.parse(function.__doc__ or "")
    parser = FunctionParser(prog=prog, description=docstring.description, allow_abbrev=False)
    explained = {parameter.arg_name: parameter.description for parameter in docstring.params}
    parameters = inspect.signature(function).parameters
    handled: set[int | str] = set()
    if "paths" in parameters:
        parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=explained.get("paths"))
        handled.add("paths")
    for name, parameter in parameters.items():
        if parameter.default is False:
            parser.add_argument(f"--{name}", action="store_true", help=explained.get(name))
            handled.add(name)
    if "overrides" in parameters:
        parser.takes_overrides = True
        handled.add("overrides")
    parser.add_function_arguments(function, skip=handled, as_group=False, as_positional=False)
    for action in parser._actions:
        underscored = [option for option in action.option_strings if "_" in option]
        # shown with dashes, as command lines are; both are understood
        action.option_strings = [option.replace("_", "-") for option in action.option_strings]
        for option in underscored:
            parser._option_string_actions[option.replace("_", "-")] = action
    return parser
