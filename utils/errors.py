"""The errors a user can cause, each with the exit code its script ends with."""


class UsageError(ValueError):
    """A flag, or a combination of flags, that cannot work."""

    exit_code = 2


class DataError(ValueError):
    """An annotation file, an image or a data set that cannot be used."""

    exit_code = 3


class ModelError(ValueError):
    """A checkpoint, a network description or a weight file that cannot be used."""

    exit_code = 4


class EnvironmentFault(RuntimeError):
    """A missing device, library, display or process: the machine, not the input."""

    exit_code = 5


class NumericError(RuntimeError):
    """Numbers that went non-finite and could not be brought back."""

    exit_code = 6


class DiskError(RuntimeError):
    """A file that could not be written, after trying again."""

    exit_code = 7


class CodedError(RuntimeError):
    """An error that is given its exit code."""

    def __init__(self, message: str, exit_code: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(CodedError):
    """A run ended by a signal after its state was saved; the code is 128 + signal (130 or 143)."""
