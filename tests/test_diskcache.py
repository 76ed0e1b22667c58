"""The cache on disk: whole or nothing, never in the way, never without bounds."""

import os
import time

import pytest

from dfstream import diskcache
from dfstream.diskcache import Store, cache_root, clear, source_digest

DAY_S = 24 * 3600


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(cache):  # noqa: ARG001
    return Store("kernels", "tag")


def test_gives_back_what_was_put(store, cache):
    assert store.get("a", "key") is None
    assert store.put("a", "key", b"contents")
    assert store.get("a", "key") == b"contents"
    assert store.folder.parent == cache / "kernels"
    assert [path.name for path in store.folder.iterdir()] == ["a"]


def test_another_key_or_tag_is_a_miss(store):
    store.put("a", "key", b"contents")
    assert store.get("a", "other key") is None
    assert Store("kernels", "other tag").get("a", "key") is None


@pytest.mark.parametrize("position", [0, 31, 32, -1])
def test_a_flipped_bit_is_a_miss(store, position):
    store.put("a", "key", b"contents")
    data = bytearray((store.folder / "a").read_bytes())
    data[position] ^= 1
    (store.folder / "a").write_bytes(data)
    assert store.get("a", "key") is None


@pytest.mark.parametrize("size", [0, 5, 32, 39])
def test_a_truncated_file_is_a_miss(store, size):
    store.put("a", "key", b"contents")
    os.truncate(store.folder / "a", size)
    assert store.get("a", "key") is None
    assert store.put("a", "key", b"again")
    assert store.get("a", "key") == b"again"


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "file"))
    store = Store("kernels", "tag")
    assert not store.put("a", "key", b"contents")
    assert store.get("a", "key") is None


def test_without_a_home_nothing_is_kept(monkeypatch):
    def no_home(*_args, **_options):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DFSTREAM_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    store = Store("kernels", "tag")
    assert not store.put("a", "key", b"contents")
    assert store.get("a", "key") is None


def test_what_nobody_has_used_for_long_goes(store):
    other = Store("kernels", "an older version")
    other.put("old", "key", b"")
    other.put("fresh", "key", b"")
    Store("kernels", "forgotten").put("old", "key", b"")
    for folder in (other.folder, Store("kernels", "forgotten").folder):
        os.utime(folder / "old", (time.time() - 91 * DAY_S,) * 2)
    store.put("a", "key", b"")
    assert [path.name for path in other.folder.iterdir()] == ["fresh"]
    assert not Store("kernels", "forgotten").folder.exists()


def test_using_a_file_keeps_it(store):
    store.put("a", "key", b"contents")
    os.utime(store.folder / "a", (time.time() - 91 * DAY_S,) * 2)
    assert store.get("a", "key") == b"contents"
    store.put("b", "key", b"")
    assert store.get("a", "key") == b"contents"


def test_the_oldest_go_when_there_is_too_much(store, monkeypatch):
    monkeypatch.setattr(diskcache, "_MAX_BYTES", 200)
    for age, name in ((3, "oldest"), (2, "older"), (1, "old")):
        store.put(name, "key", bytes(20))  # 52 bytes with its digest
        os.utime(store.folder / name, (time.time() - age,) * 2)
    store.put("new", "key", bytes(20))
    assert sorted(path.name for path in store.folder.iterdir()) == ["new", "old", "older"]


def test_clearing_leaves_models_alone(store, cache):
    store.put("a", "key", b"contents")
    Store("graphs", "tag").put("b", "key", b"")
    (cache / "DeepFilterNet3_onnx.tar.gz").write_bytes(b"a pulled model")
    assert clear() == [(cache / "kernels", 40), (cache / "graphs", 32)]
    assert [path.name for path in cache.iterdir()] == ["DeepFilterNet3_onnx.tar.gz"]
    assert clear() == []


def test_the_root(cache, monkeypatch):
    assert cache_root() == cache
    monkeypatch.delenv("DFSTREAM_CACHE")
    assert cache_root().name == "dfstream"


def test_digest_of_sources(tmp_path, monkeypatch):
    package = tmp_path / "dsp"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "kernel.py").write_text("x = 1")
    monkeypatch.setattr("dfstream.__file__", str(tmp_path / "__init__.py"))
    source_digest.cache_clear()
    before = source_digest("dsp", "net")
    (package / "helper.py").write_text("y = 1")
    source_digest.cache_clear()
    assert source_digest("dsp", "net") not in ("", before)
    source_digest.cache_clear()
    assert source_digest("net") == ""  # nothing to tell versions apart by: nothing may be kept
    source_digest.cache_clear()
