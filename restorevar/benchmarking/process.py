"""Calls in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from restorevar.errors import UserError

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
        self.process.start()
        theirs.close()
        self.names: list[str] = self._answer()

    def calls(self) -> dict[str, Callable[[], None]]:
        """The calls by name; each returns when the other process has done it."""
        return {name: lambda name=name: self._run(name) for name in self.names}  # type: ignore[misc]

    def __enter__(self) -> CallsElsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _run(self, name: str) -> None:
        self.connection.send(name)
        self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process of the peers has died; was there memory enough?") from None
        if isinstance(answer, Exception):
            self.__exit__(None, None, None)
            raise answer
        return answer


def _serve(
    connection: Connection,
    threads: int,
    build: Callable[..., Mapping[str, Callable[[], Any]]],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)  # read at PyTorch's first large tensor
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
