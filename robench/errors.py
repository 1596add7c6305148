"""Every error that robench raises on purpose, in one tree.

Each message says what is wrong, where, and what to do about it. The command line prints
exactly that line and exits with ``exit_code``; from Python the same object is raised.

::

    RobenchError
    ├── UsageError                 a value the user gave makes no sense here
    │   └── UnknownNameError       a name no registry knows; near misses are listed
    ├── CardError                  a card.toml that does not follow the schema
    ├── CheckpointError            weights that cannot be read
    │   ├── HashMismatchError      the file is not the one the card describes
    │   ├── KeyMismatchError       parameter names or shapes differ from the architecture
    │   └── UnsafeCheckpointError  reading the file would execute code
    ├── DataError                  a data set that is missing, empty or malformed
    ├── ModelError                 a model whose outputs cannot be evaluated
    ├── AttackError                an attack that is not defined for this input
    ├── TrainingError              a training run that diverged or lacks something
    ├── DeviceError                a device that is not there
    ├── StoreError                 files or records that cannot be written or read
    │   └── CorruptRecordError     a record whose checksum or schema is wrong
    ├── ContradictionError         verified and broken at once: a fault of robench's own
    ├── ExecutionError             other processes or machines that cannot do their part
    └── MissingDependencyError     an optional package that is not installed
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from robench.text import visible


def one_line(error: BaseException, limit: int = 200) -> str:
    """Another library's message in one line of at most ``limit`` characters, or its kind's name."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its kind's name; the rest is advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RobenchError(Exception):
    """Base class of all intended errors.

    Args:
        what: what is wrong, in one sentence without a final full stop.
        where: the file, field, sample or option concerned, if any.
        hint: what to do about it, if it is known.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        message = what if self.where is None else f"{self.where}: {what}"
        # Names and libraries' messages are part of it: one line, which no terminal obeys.
        message = message if hint is None else f"{message}. {hint}"
        super().__init__(visible(" ".join(message.splitlines())))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the default would pass the message as `what`.
        return partial(type(self), self.what, where=self.where, hint=self.hint), ()


class UsageError(RobenchError):
    """A value that the user gave makes no sense here."""


class UnknownNameError(UsageError):
    """A name that no registry knows."""


class CardError(RobenchError):
    """A card that does not follow the schema."""


class CheckpointError(RobenchError):
    """Weights that cannot be read."""


class HashMismatchError(CheckpointError):
    """The file on disk is not the one that the card describes."""


class KeyMismatchError(CheckpointError):
    """Parameter names or shapes that differ between the file and the architecture."""


class UnsafeCheckpointError(CheckpointError):
    """Reading the file would execute code that it carries."""


class DataError(RobenchError):
    """A data set that is missing, empty or malformed."""


@contextmanager
def data_errors(where: object) -> Iterator[None]:
    """Whatever the code of somebody's data raises is a :class:`DataError` that says where."""
    try:
        yield
    except RobenchError:
        raise
    except Exception as error:
        said = one_line(error)
        if " " not in said:  # a KeyError's key, for one
            said = f"{type(error).__name__} {said}"
        raise DataError(f"cannot be read: {said}", where=where) from error


class ModelError(RobenchError):
    """A model whose outputs cannot be evaluated."""


def ended_process(code: object) -> ModelError:
    """The error for code of a user's that would end the whole process, as with ``sys.exit()``: an
    evaluation that ends so has found nothing, whatever its exit code says."""
    if code == -9:
        return ModelError(
            "the process was killed",
            hint="Systems kill what needs more memory than there is: try --workers 1, a smaller "
            "--batch-size or fewer samples",
        )
    return ModelError(
        f"the model's code ended the process (exit code {code})",
        hint="Take sys.exit and os._exit out of it",
    )


class AttackError(RobenchError):
    """An attack that is not defined for this input."""


class TrainingError(RobenchError):
    """A training run that diverged, or lacks something it needs."""


class DeviceError(RobenchError):
    """A device that was asked for and is not there."""


class StoreError(RobenchError):
    """Files or records that cannot be written or read."""


class CorruptRecordError(StoreError):
    """A record whose checksum, schema or content is wrong."""


class ContradictionError(RobenchError):
    """A sample is verified and broken at once: a fault of the bounds or of the adjudicator."""


class ExecutionError(RobenchError):
    """Other processes or machines cannot be reached, or do not do their part."""


class MissingDependencyError(RobenchError):
    """An optional package that is not installed."""
