"""coremltools, imported when it is needed and kept quiet."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

from dfstream.errors import BackendUnavailable, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["coremltools", "quietly"]


def coremltools() -> Any:
    """Return the module.

    Raises
    ------
    BackendUnavailable
        It is not installed, or cannot be imported.
    """
    try:
        with quietly():
            import coremltools
    except ImportError as error:
        raise BackendUnavailable(
            f"coremltools cannot be imported ({first_line(error)})",
            hint="pip install 'dfstream[coreml]'",
        ) from error
    return coremltools


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep coremltools from talking: off macOS it laments its missing runtime, and draws progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), _no_progress_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    import functools

    try:
        import tqdm
    except ImportError:
        yield
        return
    original = tqdm.tqdm.__init__
    tqdm.tqdm.__init__ = functools.partialmethod(original, disable=True)
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original
