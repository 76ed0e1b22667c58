"""Compiled kernels on disk: found again by the next process, by no other CPU or source, never fatal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfstream
from dfstream.dsp import _kernelcache

#: Two kernels, one of which depends on another module.
PROBE = """
from dfstream.dsp._jit import float32, jit, reads, writes
from dfstream.dsp.probe_part import part

@jit(reads(float32, 1), float32, writes(float32, 1))
def scale(x, factor, out):
    for i in range(x.size):
        out[i] = x[i] * factor

@jit(reads(float32, 1), writes(float32, 1))
def combine(x, out):
    for i in range(x.size):
        out[i] = part(x[i])
"""
PART = """
import math
import numba

@numba.njit
def part(x):
    return math.sqrt(x) + 1
"""

#: Prints what was compiled, then what the kernels give.
REPORT = """
from dfstream.dsp._kernelcache import watching
compiled = []
with watching(compiled.append):
    from dfstream.dsp import probe
import numpy as np
x, first, second = np.array([0, 1, 4, 9], np.float32), np.zeros(4, np.float32), np.zeros(4, np.float32)
x.flags.writeable = False
probe.scale(x, 0.5, first)
probe.combine(x, second)
print(" ".join(name.rpartition(".")[2] for name in compiled) or "nothing")
print(first.tolist(), second.tolist())
"""
EVERYTHING, NOTHING = "scale combine part", "nothing"
RESULTS = "[0.0, 0.5, 2.0, 4.5] [1.0, 2.0, 3.0, 4.0]"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a copy of the package that has these kernels as well."""
    folder = tmp_path_factory.mktemp("package")
    unneeded = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(Path(dfstream.__file__).parent, folder / "dfstream", ignore=unneeded)
    (folder / "dfstream" / "dsp" / "probe.py").write_text(PROBE)
    (folder / "dfstream" / "dsp" / "probe_part.py").write_text(PART)
    return folder


@pytest.fixture
def report(package):
    return lambda cache, **environment: run(package, cache, **environment)


def run(package, cache, code=REPORT, **environment):
    """What a fresh process has to compile, and what its kernels give."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=package,
        env={**os.environ, "DFSTREAM_CACHE": str(cache), **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def warm(package, tmp_path_factory):
    """A cache that a first process has filled; not to be changed."""
    cache = tmp_path_factory.mktemp("warm")
    assert run(package, cache) == [EVERYTHING, RESULTS]
    return cache


@pytest.fixture
def copied(warm, tmp_path):
    shutil.copytree(warm, tmp_path / "cache")
    return tmp_path / "cache"


def kept(cache):
    return sorted(path for path in (cache / "kernels").rglob("*") if path.is_file())


def test_the_second_process_compiles_nothing(report, warm):
    before = {path: path.read_bytes() for path in kept(warm)}
    assert len(before) == 2
    assert report(warm) == [NOTHING, RESULTS]
    assert {path: path.read_bytes() for path in kept(warm)} == before


@pytest.mark.usefixtures("warm")
def test_nothing_is_written_beside_the_source(package):
    assert [*package.rglob("*.nbi"), *package.rglob("*.nbc")] == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "garbage", "swapped"])
def test_damaged_files_are_compiled_again(report, copied, damage):
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
    assert report(copied) == [EVERYTHING, RESULTS]
    assert report(copied) == [NOTHING, RESULTS]


def test_another_cpu_has_its_own(report, copied):
    assert report(copied, NUMBA_CPU_NAME="generic")[0] == EVERYTHING
    assert len({path.parent for path in kept(copied)}) == 2
    assert report(copied) == [NOTHING, RESULTS]


def test_files_of_another_cpu_under_our_name_are_not_used(report, copied, warm):
    report(copied, NUMBA_CPU_NAME="generic")
    ours = {path.parent for path in kept(warm)}.pop().name
    theirs = {path.parent for path in kept(copied)} - {copied / "kernels" / ours}
    shutil.rmtree(copied / "kernels" / ours)
    theirs.pop().rename(copied / "kernels" / ours)
    assert report(copied) == [EVERYTHING, RESULTS]


def test_a_change_in_any_module_of_kernels_misses(copied, package, tmp_path):
    shutil.copytree(package, tmp_path / "changed")
    assert run(tmp_path / "changed", copied)[0] == NOTHING
    part = tmp_path / "changed" / "dfstream" / "dsp" / "probe_part.py"
    part.write_text(PART.replace("+ 1", "+ 2"))
    assert run(tmp_path / "changed", copied) == [
        EVERYTHING,
        RESULTS.replace("1.0, 2.0, 3.0, 4.0", "2.0, 3.0, 4.0, 5.0"),
    ]


def test_without_a_place_they_are_compiled_in_memory(report, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert report(tmp_path / "file") == [EVERYTHING, RESULTS]


def test_with_another_numba_they_are_compiled_in_memory(package, tmp_path):
    """Stands for a version whose insides have other names."""
    renamed = "import numba.core.caching\ndel numba.core.caching._Cache\n"
    plain = REPORT.replace("from dfstream.dsp._kernelcache import watching", "import contextlib").replace(
        "watching(compiled.append)", "contextlib.nullcontext()"
    )
    assert run(package, tmp_path / "cache", renamed + plain) == [NOTHING, RESULTS]
    assert not (tmp_path / "cache").exists()


def test_processes_at_the_same_time(report, package, tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", REPORT],
            stdout=subprocess.PIPE,
            cwd=package,
            env={**os.environ, "DFSTREAM_CACHE": str(tmp_path)},
        )
        for _ in range(3)
    ]
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.decode().splitlines()[1] == RESULTS
    assert len(kept(tmp_path)) == 2
    assert report(tmp_path) == [NOTHING, RESULTS]


def test_functions_from_elsewhere_are_not_kept():
    import numba

    kernel = numba.njit(lambda x: x)
    before = kernel._cache
    _kernelcache.keep_on_disk(kernel)
    assert kernel._cache is before
