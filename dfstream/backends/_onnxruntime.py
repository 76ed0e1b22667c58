"""ONNX Runtime, imported when a backend needs it."""

from __future__ import annotations

from typing import Any

from dfstream.errors import BackendUnavailable, first_line

__all__ = ["import_onnxruntime"]


def import_onnxruntime(backend: str) -> Any:
    """Return the module.

    Parameters
    ----------
    backend : str
        Who needs it, for the message.

    Raises
    ------
    BackendUnavailable
        It is not installed, or cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"{backend}: onnxruntime cannot be imported ({first_line(error)})", hint="pip install onnxruntime"
        ) from error
    return onnxruntime
