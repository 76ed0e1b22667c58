"""Everything dfstream raises on purpose, and the exit code each kind gives the command line.

::

    DfstreamError                1   anything below, or a failure without a better name
    ├── UsageError               2   an argument out of range, an unknown name, an existing output
    ├── ModelError               3   a model that cannot be used
    │   ├── ArchiveError             unreadable, truncated or unsafe file
    │   ├── IntegrityError           the bytes are not the expected ones
    │   ├── DownloadError            the network did not deliver
    │   └── UnsupportedGraph         a graph outside the DeepFilterNet family, or one patch refusing it
    ├── BackendError             4   a runtime that cannot load or run a graph
    │   └── BackendUnavailable       not installed, or not on this platform
    ├── AudioError               5   an input that is not the audio we can process
    └── VerifyFailed             6   a patched graph does not compute what the original does
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "AudioError",
    "BackendError",
    "BackendUnavailable",
    "DfstreamError",
    "DownloadError",
    "IntegrityError",
    "ModelError",
    "UnsupportedGraph",
    "UsageError",
    "VerifyFailed",
    "first_line",
    "one_line",
]


#: Characters of a message; names inside a hostile graph may be as long as its file.
_LONGEST = 1000


def one_line(text: str) -> str:
    """Escape what breaks a line or commands a terminal: names of files, and in files, are anybody's text."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """Return what a foreign error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class DfstreamError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message : str
        What was found and what was expected, in one line.
    hint : str, optional
        What to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        self.hint = None if hint is None else one_line(hint)


class UsageError(DfstreamError, ValueError):
    """A call or a command line that asks for something impossible."""

    exit_code = 2


class ModelError(DfstreamError):
    """A model that cannot be used."""

    exit_code = 3


class ArchiveError(ModelError):
    """A model file that cannot be read, is cut short, or is not safe to read."""


class IntegrityError(ModelError):
    """Bytes whose hash is not the expected one."""


class DownloadError(ModelError):
    """A download that did not succeed."""


class UnsupportedGraph(ModelError):
    """A graph that is not of the DeepFilterNet family, or that a patch does not fit."""


class BackendError(DfstreamError):
    """A runtime that cannot load or run a graph."""

    exit_code = 4


class BackendUnavailable(BackendError):
    """A runtime that is not installed or does not exist on this platform."""


class AudioError(DfstreamError, ValueError):
    """An input that is not audio, or not audio of a supported form."""

    exit_code = 5


class VerifyFailed(DfstreamError):
    """A patched graph does not compute what the original does."""

    exit_code = 6
