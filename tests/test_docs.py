"""What the documents say is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import modes_table
from dfstream import catalog, registry
from dfstream.backends.base import backend_names
from dfstream.modes.base import mode_names

ROOT = Path(__file__).resolve().parent.parent


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_table_of_modes_is_the_codes(tmp_path: Path) -> None:
    table = modes_table.table(modes_table.full_size_model(tmp_path))
    assert table in _read("MODES.md"), f"MODES.md should hold\n{table}"


def test_the_table_of_backends_is_the_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_backend: object, **_options: object) -> None:
        raise AssertionError("a table of backends needs none of them to work here")

    for name in backend_names():
        monkeypatch.setattr(registry.find("backend", name), "__init__", refuse)
    table = modes_table.backends_table(modes_table.full_size_model(tmp_path))
    assert f"\n\n{table}\n\n" in _read("MODES.md"), f"MODES.md should hold\n{table}"
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == backend_names()


@pytest.mark.parametrize("document", ["README.md", "MODES.md"])
def test_every_mode_is_described(document: str) -> None:
    text = _read(document)
    for name in mode_names():
        assert f"`{name}`" in text


def test_every_backend_and_model_is_named() -> None:
    text = _read("README.md")
    for name in (*backend_names(), *(known.name for known in catalog.KNOWN)):
        assert f"`{name}`" in text


def test_options_and_commands_in_the_readme_exist() -> None:
    block = re.search(r"## Command line\n(.*?)\n## ", _read("README.md"), re.DOTALL)
    assert block is not None
    commands = set(re.findall(r"^    dfstream (\w+)", block[1], re.MULTILINE))
    options = set(re.findall(r"(--[a-z][a-z-]+)", block[1]))
    help_text = "".join(
        subprocess.run(
            [sys.executable, "-m", "dfstream", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in sorted(commands)
    )
    missing = {option for option in options if option not in help_text}
    assert commands >= {"run", "patch", "inspect", "models"}
    assert not missing


def test_commands_of_the_macos_workflow_exist() -> None:
    text = _read(".github/workflows/macos.yml").replace("\\\n", " ")
    used: dict[str, set[str]] = {}
    for command, rest in re.findall(r"^ *dfstream (\w+)(.*)$", text, re.MULTILINE):
        used.setdefault(command, set()).update(re.findall(r" (--[a-z][a-z-]+)", rest))
    assert used.keys() >= {"doctor", "convert", "verify", "run", "bench"}
    for command, options in used.items():
        done = subprocess.run(
            [sys.executable, "-m", "dfstream", command, "--help"], capture_output=True, text=True, check=True
        )
        assert not {option for option in options if option not in done.stdout}, command
    named = {name for name in backend_names() if f"--backend {name}" in text}
    assert named >= {"ort-cpu", "numba", "mlpackage"}
    for path in re.findall(r"python (tools/\w+\.py)", text):
        assert (ROOT / path).exists()


def test_links_between_documents_lead_somewhere() -> None:
    folders = (".", "docs", "js", "examples", "examples/*")
    documents = [path for folder in folders for path in ROOT.glob(f"{folder}/*.md")]
    assert {path.name for path in documents} >= {"README.md", "MODES.md", "languages.md"}
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"
