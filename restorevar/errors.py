"""The one exception that is meant for users."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake the user can mend: bad input, a wrong key, a missing file.

    The message has one or two lines and says what was found, what was expected and what to change. The command line
    prints it as ``error: <message>`` without a traceback and leaves with exit code 2.
    """
