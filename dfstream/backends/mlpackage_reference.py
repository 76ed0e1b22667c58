"""A Core ML package on any system: read from its files and computed in numpy, slowly."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dfstream.backends._package import PackageBackend
from dfstream.backends.base import Backend
from dfstream.interface import state_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfstream.backends.base import Arrays
    from dfstream.coreml.metadata import PackageFacts
    from dfstream.coreml.package import Package
    from dfstream.model import Model


@dataclasses.dataclass(frozen=True)
class MlpackageReference(PackageBackend):
    """The numpy interpreter of packages: to hear and to check one where there is no Core ML."""

    name = "mlpackage-reference"
    summary = "a Core ML package in a numpy interpreter: anywhere, slowly"

    __hash__ = Backend.__hash__

    @classmethod
    def preference(cls, model: Model) -> int:
        """Last of all, for packages only."""
        return 0 if model.package else -1

    def advancer(self, package: Package, facts: PackageFacts) -> Callable[[Arrays], Arrays]:
        """Return the interpreter as a function; see `PackageBackend.advancer`."""
        from dfstream.coreml.interpreter import Interpreter

        interpreter = Interpreter(package)
        if facts.flavour.state == "explicit":
            return lambda feeds: interpreter.run(feeds)[0]
        shapes = {name: state.shape for name, state in facts.states.items()}
        inside = {name: array.shape for name, array in interpreter.initial_states().items()}

        def advance(feeds: Arrays) -> Arrays:
            features = {name: array for name, array in feeds.items() if name not in shapes}
            states = {name: feeds[name].reshape(shape) for name, shape in inside.items()}
            results, after = interpreter.run(features, states)
            return {**results, **{state_output(n): a.reshape(shapes[n]) for n, a in after.items()}}

        return advance


BACKEND = MlpackageReference
