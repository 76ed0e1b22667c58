"""The order of the probes, what they find, and what that means for the exit code."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, get_args

from dfstream import __version__
from dfstream.doctor import installation, network, places
from dfstream.errors import DfstreamError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfstream.backends.base import Backend
    from dfstream.model import Model

    Probe = Callable[["Examination"], dict[str, Any]]

__all__ = ["PROBES", "Examination", "Finding", "Level", "examine"]

#: Something does not work; it works, but worse than it could; good to know.
Level = Literal["problem", "warning", "note"]

#: By section. Later ones use the model and the backend that earlier ones found.
PROBES: dict[str, Probe] = {
    "machine": installation.machine,
    "packages": installation.packages,
    "onnxruntime": installation.runtime,
    "environment": installation.environment,
    "cache": places.cache,
    "models": places.models,
    "model": network.load,
    "backends": network.backends,
    "self-test": network.self_test,
    "kernels": places.kernels,
}

#: Sections without which nothing is enhanced.
_NEEDED = ("model", "backends", "self-test", "kernels")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, or could be better.

    Attributes
    ----------
    section : str
        Which probe found it.
    level : "problem", "warning" or "note"
    what : str
        One line.
    advice : str or None
        What to do, in one line.
    exit_code : int
        That of the whole examination, where no earlier finding has one; 0 for what does not decide.
    """

    section: str
    level: Level
    what: str
    advice: str | None = None
    exit_code: int = 0


@dataclasses.dataclass
class Examination:
    """What is looked at, and what was found so far.

    Attributes
    ----------
    model_name : str
        A name or path as `Model.load` takes it.
    quick : bool
        Load no graph, compile nothing, and leave the self-test out.
    sections : dict
        Plain values by section; those of a probe that failed are ``{"error": reason}``.
    findings : list of Finding
    model : Model or None
        None until it is loaded.
    backend : Backend or None
        What `AUTO` takes; None until one is found.
    """

    model_name: str = "bundled"
    quick: bool = False
    sections: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    model: Model | None = None
    backend: Backend | None = None

    def find(
        self, section: str, level: Level, what: str, advice: str | None = None, *, exit_code: int = 0
    ) -> None:
        """Note a finding."""
        advice = None if advice is None else one_line(advice)
        self.findings.append(Finding(section, level, one_line(what), advice, exit_code))

    @property
    def exit_code(self) -> int:
        """0 where a backend works and the self-test passed; else what the first thing in the way gives."""
        return next((finding.exit_code for finding in self.findings if finding.exit_code), 0)

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "dfstream": __version__,
            "quick": self.quick,
            "sections": self.sections,
            "findings": [dataclasses.asdict(finding) for finding in self._by_level()],
            "exit_code": self.exit_code,
        }

    def _by_level(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: get_args(Level).index(finding.level))


def examine(
    model: str = "bundled", *, quick: bool = False, progress: Callable[[str], None] = lambda _: None
) -> Examination:
    """Run all probes. One that fails becomes a finding, and the others go on.

    Parameters
    ----------
    model : str
        A name or path as `Model.load` takes it.
    quick : bool
        Load no graph, compile nothing, and leave the self-test out.
    progress : callable
        Told the name of each section as it begins.
    """
    case = Examination(model, quick)
    for section, probe in PROBES.items():
        progress(section)
        try:
            case.sections[section] = probe(case)
        except Exception as error:
            case.sections[section] = {"error": _failed(case, section, error)}
    return case


def _failed(case: Examination, section: str, error: Exception) -> str:
    needed = section in _NEEDED
    if isinstance(error, DfstreamError):
        what, advice, code = str(error), error.hint, error.exit_code
    else:
        what, code = f"cannot be examined ({type(error).__name__}: {error})", 1
        advice = "DFSTREAM_DEBUG=1 dfstream run IN OUT shows where, if that fails too"
        if isinstance(error, ImportError):
            advice = f"pip install --force-reinstall {(error.name or 'dfstream').partition('.')[0]}"
    case.find(section, "problem" if needed else "warning", what, advice, exit_code=code if needed else 0)
    return case.findings[-1].what
