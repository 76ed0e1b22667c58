"""Files that appear whole or not at all."""

import os
import stat
import sys

import pytest

from dfstream.atomic import replacing, write_all
from dfstream.errors import UsageError

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_takes_its_place_on_success(tmp_path):
    target = tmp_path / "a.bin"
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_has_the_mode_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.bin"):
            pass
        assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~umask
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="cannot write"), replacing(tmp_path / "none" / "a.bin"):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot write"), replacing(tmp_path / "a.bin"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_write_all(tmp_path):
    write_all(tmp_path, {"a": b"1", "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_write_all_or_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UsageError):
        write_all(tmp_path, {"a": b"1", "b": b"2", "none/c": b"3"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}
