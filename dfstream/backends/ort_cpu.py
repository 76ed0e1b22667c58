"""ONNX Runtime on the CPU: the reference every other backend is compared with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dfstream.backends.base import Backend
from dfstream.errors import BackendError, BackendUnavailable, UsageError
from dfstream.interface import state_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfstream.backends.base import Arrays


@dataclasses.dataclass(frozen=True)
class OrtCpu(Backend):
    """ONNX Runtime's CPU execution provider.

    Attributes
    ----------
    threads : int
        Threads one call may use. One is right for a stream: the graphs are small, and a second thread
        costs more in waiting than it saves.
    """

    name = "ort-cpu"
    summary = "ONNX Runtime on the CPU"

    threads: int = 1

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        if type(self.threads) is not int or not 1 <= self.threads <= 256:
            raise UsageError(f"threads = {self.threads!r}, expected a whole number, 1 to 256")

    def load(self, graph: bytes, name: str) -> _OrtSession:
        """Load one graph; see `Backend.load`."""
        ort = _runtime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base class
            raise BackendError(f"{self.name}: cannot load {name} ({_first_line(error)})") from error
        return _OrtSession(session, name)


class _OrtSession:
    """One loaded graph; see `dfstream.backends.base.Session`."""

    def __init__(self, session: Any, name: str) -> None:
        self._run = session.run
        self._name = name
        self._outputs = [output.name for output in session.get_outputs()]
        shapes = {given.name: tuple(given.shape) for given in session.get_inputs()}
        self.states: Mapping[str, tuple[int | str, ...]] = {
            name: shapes[name] for name in state_inputs(shapes, self._outputs)
        }

    def run(self, feeds: Arrays) -> Arrays:
        """Run the graph once."""
        try:
            return dict(zip(self._outputs, self._run(self._outputs, feeds), strict=True))
        except Exception as error:
            raise BackendError(f"ort-cpu: {self._name} failed ({_first_line(error)})") from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"ort-cpu: onnxruntime cannot be imported ({_first_line(error)})", hint="pip install onnxruntime"
        ) from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


BACKEND = OrtCpu
