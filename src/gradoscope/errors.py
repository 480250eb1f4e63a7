"""The errors that Gradoscope raises on purpose, each with the exit code of the command line."""

__all__ = ["CannotRun", "CannotWrite", "GradoscopeError", "Usage"]


class GradoscopeError(Exception):
    """A mistake that the user can mend: the message says what was expected, what came, and how to mend it."""

    exit_code = 3


class Usage(GradoscopeError):
    """The request itself is wrong: an unknown name, option or value."""

    exit_code = 2


class CannotRun(GradoscopeError):
    """The training cannot be run as given."""

    exit_code = 3


class CannotWrite(GradoscopeError):
    """A result cannot be written where it was asked for."""

    exit_code = 4
