"""The package as a whole: what importing it costs, what it names, what its wheel holds."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import dfstream
from dfstream import webruntime

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numba", "onnx", "onnx_graphsurgeon", "onnxruntime", "soundfile", "rich", "click", "platformdirs")

#: Not part of a checkout.
LITTER = (
    ".git", ".venv", "node_modules", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info",
)  # fmt: skip


def modules_after(code):
    """Names of the top-level modules that a fresh interpreter has loaded after some code."""
    report = f"{code}\nimport sys\nprint('\\n'.join({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_checkout_finds_its_patches():
    """Whatever is installed: Python looks for packages in the folder it is started in first."""
    code = "import dfstream.patches as p; print(p.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert Path(done.stdout.strip()) == ROOT / "patches" / "__init__.py", done.stderr


def test_importing_loads_nothing_heavy():
    loaded = modules_after("import dfstream")
    assert "dfstream" in loaded
    assert loaded.isdisjoint({*HEAVY, "numpy"})


def test_the_classes_load_no_runtime():
    loaded = modules_after("from dfstream import DfstreamError, Model, ModelConfig, Stream, enhance")
    assert loaded.isdisjoint({*HEAVY} - {"numba"})


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["patch", "--help"],
        ["inspect", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_loads_neither_compiler_nor_runtime(args):
    loaded = modules_after(
        f"from dfstream.cli import _run\nimport contextlib, io\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    assert _run({args}) == 0"
    )
    assert "click" in loaded
    assert loaded.isdisjoint({"numba", "onnx", "onnx_graphsurgeon", "onnxruntime", "soundfile", "matplotlib"})


def test_public_names_exist():
    assert sorted(dfstream.__all__) == dir(dfstream)
    for name in dfstream.__all__:
        assert getattr(dfstream, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        dfstream.nonsense  # noqa: B018


def test_version_is_that_of_the_distribution():
    assert dfstream.__version__ == metadata.version("dfstream")


def test_says_that_it_is_typed():
    assert (Path(dfstream.__file__).parent / "py.typed").is_file()


def test_every_package_is_listed():
    """`pyproject.toml` names them one by one: a forgotten one would only be missed after installing."""
    listed = set(
        re.findall(r'^    "(dfstream[.a-z]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dfstream").rglob("__init__.py")
    }
    assert listed == packages | {"dfstream.patches", "dfstream.examples", "dfstream.js"}


# -- distributions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources, since a build leaves its traces in them."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LITTER))
    return copy


def expected_files():
    """All that belongs into the package, as paths inside it."""
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dfstream").rglob("*.py")}
    sources |= {f"dfstream/patches/{p.name}" for p in (ROOT / "patches").glob("*.py")}
    data = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dfstream" / "data").rglob("*") if p.is_file()}
    web = (p.name for p in (ROOT / "examples" / "web").iterdir() if p.suffix != ".md")
    page = {f"dfstream/examples/web/{name}" for name in web}
    page |= {f"dfstream/js/{p.name}" for p in (ROOT / "js" / "src").glob("*.js")}
    return sources | data | page | {"dfstream/py.typed", "dfstream/examples/noisy.wav"}


@pytest.mark.slow
def test_wheel(checkout, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", str(checkout), "--no-deps", "-w", str(tmp_path), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dfstream-{dfstream.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        entry_points = file.read(f"dfstream-{dfstream.__version__}.dist-info/entry_points.txt").decode()
    info = f"dfstream-{dfstream.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"dfstream", info}
    assert {name for name in names if name.startswith("dfstream/")} == expected_files()
    assert {f"{info}/licenses/LICENSE-MIT", f"{info}/licenses/LICENSE-APACHE"} <= names
    assert "dfstream = dfstream.cli:main" in entry_points


@pytest.mark.slow
def test_installed_wheel_works(checkout, tmp_path):
    """Away from the sources, where `patches/` is no longer beside the package."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", str(checkout), "--no-deps", "-t", str(target), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for name in webruntime.FILES:
        (runtime / name).touch()
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import dfstream; assert dfstream.__file__.startswith(sys.path[0]), dfstream.__file__\n"
        "import dfstream.patches; assert dfstream.patches.__file__.startswith(sys.path[0])\n"
        "from dfstream.cli import _run\n"
        f"code = _run(['patch', 'bundled', '-o', {str(tmp_path / 'out')!r}, '--mode', 'incremental'])\n"
        f"sys.exit(code or _run(['demo', '--runtime', {str(runtime)!r}, '-o', {str(tmp_path / 'page')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "combined_incremental.onnx").is_file()
    assert (tmp_path / "page" / "dfstream" / "index.js").is_file()


@pytest.mark.slow
def test_source_distribution_can_be_built_from(checkout, tmp_path):
    pytest.importorskip("build", reason="needs the package build")
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = set(expected_files())
    for inside, beside in (("patches", "patches"), ("examples", "examples"), ("js", "js/src")):
        wanted = {re.sub(f"^dfstream/{inside}/", f"{beside}/", name) for name in wanted}
    assert wanted | {"pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"} <= names
