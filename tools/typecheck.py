"""Run mypy on the package as it is installed, where `patches/` is `dfstream.patches`, and on the tools.

Usage: python tools/typecheck.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Copy the package into the shape of an installation, check it, and name files as they lie here."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "dfstream"
        _mirror(ROOT / "dfstream", package)
        _mirror(ROOT / "patches", package / "patches")
        _mirror(ROOT / "tools", Path(folder))
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "dfstream"]
        command += [tool.name for tool in sorted(Path(folder).glob("*.py"))]
        command += [str(Path("train") / part.name) for part in sorted((Path(folder) / "train").glob("*.py"))]
        command += ["--cache-dir", str(ROOT / ".mypy_cache")]
        paths = os.pathsep.join([folder, str(Path(folder) / "train")])
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": paths}
        )
    print((result.stdout + result.stderr).replace("dfstream/patches/", "patches/"), end="")
    return result.returncode


def _mirror(source: Path, target: Path) -> None:
    for path in source.rglob("*.py"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    if (source / "py.typed").exists():
        (target / "py.typed").touch()


if __name__ == "__main__":
    sys.exit(main())
