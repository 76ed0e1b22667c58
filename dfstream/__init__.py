"""Streams any DeepFilterNet export.

The names below are imported when they are first used, so that ``import dfstream`` stays quick:
numba, onnx and onnxruntime load with the first model, not with the package.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfstream.config import ModelConfig
    from dfstream.errors import DfstreamError
    from dfstream.model import Model
    from dfstream.offline import enhance
    from dfstream.pool import StreamPool
    from dfstream.stream import Stream

# in a checkout, which a script that is run there finds before an installed package, the patches lie beside it
if not os.path.isdir(os.path.join(__path__[0], "patches")):  # noqa: PTH112, PTH118
    __path__.append(os.path.dirname(__path__[0]))  # noqa: PTH120

__version__ = "0.1.0"

__all__ = ["DfstreamError", "Model", "ModelConfig", "Stream", "StreamPool", "__version__", "enhance"]

_HOME = {
    "DfstreamError": "dfstream.errors",
    "Model": "dfstream.model",
    "ModelConfig": "dfstream.config",
    "Stream": "dfstream.stream",
    "StreamPool": "dfstream.pool",
    "enhance": "dfstream.offline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
