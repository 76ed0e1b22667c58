"""A Core ML package in Core ML itself, on macOS."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dfstream.arguments import check_choice
from dfstream.backends._package import PackageBackend
from dfstream.backends.base import Backend
from dfstream.coreml.agreement import Mismatch, check_agreement
from dfstream.errors import BackendError, BackendUnavailable, first_line
from dfstream.interface import state_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays, Session
    from dfstream.coreml.metadata import PackageFacts
    from dfstream.coreml.package import Package, Tensor
    from dfstream.model import Model

Units = Literal["cpu", "cpu+gpu", "cpu+ane", "all"]

#: coremltools' names of the units.
_UNITS = {"cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE", "all": "ALL"}

#: Calls of the start-up test of anything but the CPU, and how long 99 of 100 of them may take: a third of
#: a hop leaves room for the signal processing and for a busy machine.
_TEST_CALLS, _TEST_MS = 200, 3.0


@dataclasses.dataclass(frozen=True)
class Mlpackage(PackageBackend):
    """Core ML, through coremltools.

    Attributes
    ----------
    units : "cpu", "cpu+gpu", "cpu+ane" or "all"
        Where Core ML may compute. A hop is so short that handing it to the Neural Engine costs about what
        the CPU needs for all of it: anything but ``cpu`` is timed when it is loaded, and given up, with a
        warning, where it is too slow for live audio.
    mismatch : "refuse" or "warn"
        What to do when the first frames are not what the package computes by the book.
    """

    name = "mlpackage"
    summary = "a Core ML package in Core ML"
    runs_on = "macOS"

    units: Units = "cpu"
    mismatch: Mismatch = "refuse"

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("units", self.units, get_args(Units))
        check_choice("mismatch", self.mismatch, get_args(Mismatch))
        _runtime()

    @classmethod
    def preference(cls, model: Model) -> int:
        """First of all for packages; an export runs quicker as kernels."""
        return 3 if model.package else -1

    def advancer(self, package: Package, facts: PackageFacts) -> Callable[[Arrays], Arrays]:  # noqa: ARG002
        """Compile and load the package; see `PackageBackend.advancer`."""
        loaded = _Loaded(package, self.units)
        if self.units != "cpu" and not loaded.is_quick():
            warnings.warn(
                f"mlpackage: units={self.units} needs more than {_TEST_MS:g} ms for some calls: using cpu",
                stacklevel=2,
            )
            loaded = _Loaded(package, "cpu")
        return loaded.advance

    def examine(self, session: Session, model: Model, facts: PackageFacts) -> None:
        """Compare a few frames; see `dfstream.coreml.agreement.check_agreement`."""
        precision, exact = facts.flavour.precision, facts.flavour.state == "explicit" and self.units == "cpu"
        # other units and Core ML's own states are half precision, whatever the package says
        check_agreement(
            session,
            model,
            "ane" if precision == "fp32" and not exact else precision,
            self.mismatch,
            self.name,
        )


class _Loaded:
    """A package that Core ML has compiled."""

    def __init__(self, package: Package, units: str) -> None:
        ct = _runtime()
        try:
            self._model = ct.models.MLModel(
                str(package.path), compute_units=getattr(ct.ComputeUnit, _UNITS[units])
            )
        except Exception as error:  # Core ML's errors share no base class
            raise BackendError(
                f"mlpackage: Core ML cannot load {package.path} ({first_line(error)})"
            ) from error
        self._inputs, self._states = package.inputs, package.states
        self._state = self._model.make_state() if package.states else None
        self._lock = threading.Lock()  # of the state: streams take turns

    def advance(self, feeds: Arrays) -> Arrays:
        """Advance by one call; states that Core ML keeps are put there and taken out again."""
        given = {name: _cast(feeds[name], tensor) for name, tensor in self._inputs.items()}
        try:
            if self._state is None:
                return _widened(self._model.predict(given))
            with self._lock:
                for name, tensor in self._states.items():
                    self._state.write_state(name, _cast(feeds[name].reshape(tensor.shape), tensor))
                results = _widened(self._model.predict(given, state=self._state))
                after = {name: np.array(self._state.read_state(name), np.float32) for name in self._states}
        except Exception as error:
            raise BackendError(f"mlpackage: Core ML failed ({first_line(error)})") from error
        shaped = {state_output(name): array.reshape(feeds[name].shape) for name, array in after.items()}
        return {**results, **shaped}

    def is_quick(self) -> bool:
        """Time some calls from silence."""
        tensors = {**self._inputs, **self._states}
        feeds = {name: np.zeros(tensor.shape, np.float32) for name, tensor in tensors.items()}
        taken = []
        for _ in range(_TEST_CALLS):
            start = time.perf_counter()
            self.advance(feeds)
            taken.append(time.perf_counter() - start)
        return float(np.percentile(taken, 99)) * 1e3 <= _TEST_MS


def _cast(array: NDArray[np.float32], tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=tensor.dtype)


def _widened(results: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.asarray(array, np.float32) for name, array in results.items()}


def _runtime() -> Any:
    """Return coremltools where it can run packages.

    Raises
    ------
    BackendUnavailable
        Not on this system, or not installed.
    """
    from dfstream.coreml.toolbox import coremltools

    if sys.platform != "darwin":
        raise BackendUnavailable(
            "mlpackage: Core ML exists on macOS only",
            hint="mlpackage-reference runs packages here, slowly; numba and ort-cpu run the model",
        )
    return coremltools()


BACKEND = Mlpackage
