"""Compiled kernels on disk: found again by the next process, by no other CPU or source, never fatal."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import dfstream
from dfstream.dsp import _kernelcache
from dfstream.dsp.norm import mean_norm, unit_norm
from dfstream.dsp.stft import Analysis

#: Prints which kernels were compiled, then the results of one from each kind of function.
REPORT = """
import sys
from dfstream.dsp._kernelcache import watching
compiled = []
with watching(compiled.append):
    import dfstream.dsp.norm as norm
import numpy as np
x = np.arange(8, dtype=np.float32).reshape(2, 4) / 7
spec = (x + 1j * x[::-1]).astype(np.complex64)
out, features, state = np.zeros_like(x), np.zeros((2, 2, 4), np.float32), np.ones(4, np.float32)
norm.mean_norm(x, 0.99, state.copy(), out)
norm.unit_norm(spec, 0.99, state, features)
print(" ".join(sorted(compiled)) or "nothing")
print(out.tobytes().hex(), features.tobytes().hex())
"""
KERNELS = "mean_norm unit_norm"


def report(cache, package=None, **environment):
    """What a fresh process has to compile, and what its kernels give."""
    environment = {**os.environ, "DFSTREAM_CACHE": str(cache), **environment}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=package,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A cache that a first process has filled, and what its kernels gave; not to be changed."""
    cache = tmp_path_factory.mktemp("warm")
    compiled, results = report(cache)
    assert compiled == KERNELS
    return cache, results


@pytest.fixture
def copied(warm, tmp_path):
    shutil.copytree(warm[0], tmp_path / "cache")
    return tmp_path / "cache"


def kept(cache):
    return sorted(path for path in (cache / "kernels").rglob("*") if path.is_file())


def test_the_second_process_compiles_nothing(warm):
    cache, results = warm
    before = {path: path.read_bytes() for path in kept(cache)}
    assert len(before) == 2
    assert report(cache) == ["nothing", results]
    assert {path: path.read_bytes() for path in kept(cache)} == before


def test_kernels_from_disk_give_the_bits_of_this_process(warm):
    x = np.arange(8, dtype=np.float32).reshape(2, 4) / 7
    spec = (x + 1j * x[::-1]).astype(np.complex64)
    out, features, state = np.zeros_like(x), np.zeros((2, 2, 4), np.float32), np.ones(4, np.float32)
    mean_norm(x, 0.99, state.copy(), out)
    unit_norm(spec, 0.99, state, features)
    assert warm[1] == f"{out.tobytes().hex()} {features.tobytes().hex()}"


def test_nothing_is_written_beside_the_source():
    Analysis(960, 480, 1)
    folder = Path(dfstream.__file__).parent
    assert [*folder.rglob("*.nbi"), *folder.rglob("*.nbc")] == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "garbage", "swapped"])
def test_damaged_files_are_compiled_again(copied, warm, damage):
    files = kept(copied)
    contents = [path.read_bytes() for path in files]
    for index, path in enumerate(files):
        data = bytearray(contents[index])
        for place in range(len(data) // 2, len(data), 997):
            data[place] ^= 0xFF
        path.write_bytes(
            {
                "flipped": data,
                "truncated": data[:1000],
                "garbage": b"garbage",
                "swapped": contents[1 - index],
            }[damage]
        )
    assert report(copied) == [KERNELS, warm[1]]
    assert report(copied) == ["nothing", warm[1]]


def test_another_cpu_has_its_own(copied, warm):
    assert report(copied, NUMBA_CPU_NAME="generic")[0] == KERNELS
    assert len({path.parent for path in kept(copied)}) == 2
    assert report(copied) == ["nothing", warm[1]]


def test_files_of_another_cpu_under_our_name_are_not_used(copied, warm):
    report(copied, NUMBA_CPU_NAME="generic")
    ours = {path.parent for path in kept(warm[0])}.pop().name
    theirs = {path.parent for path in kept(copied)} - {copied / "kernels" / ours}
    shutil.rmtree(copied / "kernels" / ours)
    theirs.pop().rename(copied / "kernels" / ours)
    assert report(copied) == [KERNELS, warm[1]]


def test_a_change_in_any_module_of_kernels_misses(copied, tmp_path):
    package = tmp_path / "source"
    unneeded = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(Path(dfstream.__file__).parent, package / "dfstream", ignore=unneeded)
    assert report(copied, package)[0] == "nothing"
    with (package / "dfstream" / "dsp" / "_checks.py").open("a") as file:
        file.write("\n# a helper has changed\n")
    assert report(copied, package)[0] == KERNELS


def test_without_a_place_they_are_compiled_in_memory(tmp_path, warm):
    (tmp_path / "file").write_text("not a folder")
    assert report(tmp_path / "file") == [KERNELS, warm[1]]


def test_with_another_numba_they_are_compiled_in_memory(tmp_path, warm):
    """Stands for a version whose insides have other names."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import numba.core.compiler
        del numba.core.compiler.CompileResult._rebuild
        """)
    )
    code = REPORT.replace("from dfstream.dsp._kernelcache import watching", "").replace(
        "with watching(compiled.append):", "if True:"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "DFSTREAM_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == warm[1]
    assert not (tmp_path / "cache").exists()


def test_processes_at_the_same_time(tmp_path, warm):
    environment = {**os.environ, "DFSTREAM_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", REPORT], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.decode().splitlines()[1] == warm[1]
    assert len(kept(tmp_path)) == 2
    assert report(tmp_path) == ["nothing", warm[1]]


def test_functions_from_elsewhere_are_not_kept():
    import numba

    kernel = numba.njit(lambda x: x)
    before = kernel._cache
    _kernelcache.keep_on_disk(kernel)
    assert kernel._cache is before
