"""Calls in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn

import torch

from restorevar.errors import UserError
from restorevar.memory import LARGE_PAGES

__all__ = ["CallsElsewhere"]


class CallsElsewhere:
    """Runs the calls that ``build`` makes in a fresh process, with the memory settings of PyTorch and the C library.

    Peers are timed there: as their users would run them, and without sharing a heap with what they are compared to.

    Args:
        build: A function that a fresh process can import; it returns calls by name.
        arguments: For ``build``; sent to the process.

    Raises:
        UserError: If ``build`` raises it there.
        RuntimeError: If the process cannot make or run the calls.
    """

    def __init__(self, build: Callable[..., Mapping[str, Callable[[], Any]]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        threads = torch.get_num_threads()
        self.process = context.Process(target=_serve, args=(theirs, threads, build, arguments), daemon=True)
        large_pages = os.environ.pop(LARGE_PAGES, None)
        try:
            self.process.start()
        finally:
            if large_pages is not None:
                os.environ[LARGE_PAGES] = large_pages
        theirs.close()
        try:
            self.names: list[str] = self._answer()
        except BaseException:
            self._end()
            raise

    def calls(self) -> dict[str, Callable[[], None]]:
        """The calls by name; each returns when the other process has done it."""
        return {name: lambda name=name: self._run(name) for name in self.names}  # type: ignore[misc]

    def __enter__(self) -> CallsElsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _run(self, name: str) -> None:
        try:
            self.connection.send(name)
        except OSError:
            self._died()
        self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self._died()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _died(self) -> NoReturn:
        self.process.join(5)
        raise RuntimeError(
            f"the process of the peers ended with {self.process.exitcode} (-9: no memory left?)"
        ) from None

    def _end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(
    connection: Connection,
    threads: int,
    build: Callable[..., Mapping[str, Callable[[], Any]]],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            calls = build(*arguments)
            connection.send(list(calls))
            while True:
                calls[connection.recv()]()
                connection.send(None)
    except EOFError:
        return
    except UserError as error:
        connection.send(error)
    except Exception as error:  # others need not survive pickling
        connection.send(RuntimeError(f"in the process of the peers: {error!r}"))
