"""The ``restorevar`` command line; ``main(["restore", ...])`` runs it in-process and returns the exit code."""

from restorevar.cli.main import main

__all__ = ["main"]
