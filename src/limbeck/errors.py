"""The errors a user can mend: one sentence that names the place and the remedy.

The command line prints a `LimbeckError` as one line, without a traceback. Anything else is our own mistake and keeps its
traceback. `assert` is for our own mistakes only.
"""


class LimbeckError(Exception):
    """Something outside the code is wrong; the message says where, and what to do."""

    exit_code = 1


class SpecError(LimbeckError):
    """A recipe, study or override says something that cannot be; the message holds the path of the key."""

    exit_code = 2


class DataError(LimbeckError):
    """Texts or tokens are missing, empty or damaged."""


class TeacherError(LimbeckError):
    """A teacher cannot be loaded, or says something that is not a distribution (NaN)."""


class StoreError(LimbeckError):
    """A signal store is missing, incomplete, damaged, or holds something else than what was asked of it."""


class DivergedError(LimbeckError):
    """A run's loss or gradient stopped being finite. Other runs may go on."""


def first_line(error: BaseException) -> str:
    """Of an error's message, for the end of a sentence; empty where it has none."""
    return str(error).strip().split("\n", 1)[0]
