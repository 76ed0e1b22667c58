"""Whether Core ML computes a network at all: its first frames against a runtime that is known to.

Core ML compiles the same network differently for each processor and version of the system, and has been
wrong without an error before (microsoft/onnxruntime#32569, apple/coremltools#2281). A few frames of speech
tell, in milliseconds, before anybody hears it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from dfstream.backends.base import find_backend
from dfstream.errors import BackendError
from dfstream.interface import RESULTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays, Session
    from dfstream.model import Model

__all__ = ["BOUNDS", "Mismatch", "check_agreement"]

#: What to do about a network that computes something else.
Mismatch = Literal["refuse", "warn"]

#: Largest difference of gains (0 to 1) and taps, by precision. Half precision was measured to cost 2e-3 in
#: these frames, weights of eight bits 4e-2; the Neural Engine adds tables for its sigmoids. What is wrong is
#: wrong by half and more.
BOUNDS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 5e-2, "ane": 5e-2, "int8": 0.2, "palette": 0.2}

#: The LSNR is such a gain, stretched to this many dB.
_LSNR_RANGE_DB = 50.0

#: In the first word of the packaged speech.
_FRAMES = slice(40, 56)


def check_agreement(session: Session, model: Model, precision: str, mismatch: Mismatch, name: str) -> None:
    """Compare the first frames of a session with those of the runtime that counts.

    That is the numpy interpreter for a model that is a package, ONNX Runtime on the CPU for any other.

    Parameters
    ----------
    session : Session
        Serves the mode ``incremental``.
    model : Model
    precision : str
        One of `BOUNDS`.
    mismatch : "refuse" or "warn"
        Whether a difference beyond the bound is an error or a warning.
    name : str
        Of the backend, for the message.

    Raises
    ------
    BackendError
        The results differ, are not finite or of another shape.
    """
    from dfstream.checking import test_features
    from dfstream.modes.base import find_mode

    recipe = find_mode("incremental").recipe()
    known = find_backend("ort-cpu" if model.package is None else "mlpackage-reference")
    (reference,) = model.open(known, recipe).values()
    speech = test_features(model)["speech"]
    features = {key: np.ascontiguousarray(array[:, :, _FRAMES]) for key, array in speech.items()}
    got, want = (_first_frames(runtime, features) for runtime in (session, reference))
    bound = BOUNDS[precision]
    off = {key: _difference(got[key], want[key]) for key in RESULTS}
    if off["m"] <= bound and off["coefs"] <= bound and off["lsnr"] <= bound * _LSNR_RANGE_DB:
        return
    message = (
        f"{name}: Core ML computes something else than {known.name} here: gains differ by {off['m']:.2g}, "
        f"taps by {off['coefs']:.2g}, the LSNR by {off['lsnr']:.2g} dB; {bound:g} would be rounding"
    )
    if mismatch == "refuse":
        raise BackendError(
            message, hint=f"try other units, use {known.name}, or mismatch=warn to run it all the same"
        )
    warnings.warn(message, stacklevel=2)


def _first_frames(session: Session, features: Arrays) -> Arrays:
    from dfstream.modes.base import initial_states

    return session.run({**features, **initial_states(session, 1)})


def _difference(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """Largest absolute difference; NaN, which is below no bound, for NaN, infinite for another shape."""
    if got.shape != want.shape:
        return float("inf")
    return float(np.max(np.abs(got.astype(np.float64) - want)))
