"""Model files that are broken or hostile: refused with one clear error, never unpacked, never waited for."""

import contextlib
import gzip
import io
import os
import tarfile
import threading
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic
from dfstream import reading
from dfstream.errors import ArchiveError, ModelError
from dfstream.model import Model

#: Contents of an archive of the usual layout; short, and none of them a graph.
FILES = {
    "enc.onnx": b"encoder" * 20,
    "erb_dec.onnx": b"mask" * 300,
    "df_dec.onnx": b"",
    "config.ini": b"[df]\nsr = 48000\n",
}

LEAN = synthetic.make(synthetic.PRESETS["lean"], seed=2)


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    """One member as it stands in an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024

#: Members that are no files.
SPECIAL = {
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def tar(files=None, folder="tmp/export/"):
    return b"".join(member(folder + name, data) for name, data in (files or FILES).items()) + END


@pytest.fixture
def read(tmp_path):
    """Read bytes as an archive; whatever happens, nothing else may appear on disk."""

    def run(data, name="model.tar.gz"):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            assert reading.is_archive(path)
            return reading.read_archive(path)
        finally:
            assert [p.name for p in tmp_path.iterdir()] == [name]

    return run


def refusal(call, *args, kind=ArchiveError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100
    return str(caught.value)


# -- archives that are fine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "./", "tmp/export/", "a/" * 40, "/", "../../", "C:\\models\\"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_members_at_any_depth_by_base_name(read, pack, folder):
    assert read(pack(tar(folder=folder))) == FILES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_tar_format(read, form, mode):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode, format=form) as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(f"{'deep/' * 15}{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert read(data.getvalue()) == FILES


def test_what_belongs_to_no_model_is_left_out(read):
    others = {
        "README.md": b"x",
        "enc.onnx.bak": b"x",
        ".hidden.onnx": b"x",
        "config.ini~": b"x",
        "model_96.ckpt": b"x",
    }
    assert read(tar({**others, **FILES})) == FILES


def test_links_and_devices_of_other_names_are_left_out(read):
    kinds = [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ]
    others = b"".join(member(f"other{i}", kind=kind, linkname="/etc/passwd") for i, kind in enumerate(kinds))
    assert read(others + member("enc.onnx/", kind=tarfile.DIRTYPE) + tar()) == FILES


def test_a_gzip_file_of_several_parts(read):
    data = tar()
    assert read(gzip.compress(data[:700]) + gzip.compress(data[700:])) == FILES


def test_the_checksum_is_read_however_far_behind_the_end_it_stands(read):
    data = bytearray(gzip.compress(tar() + bytes(1 << 20)))
    assert read(bytes(data)) == FILES
    data[-5] ^= 1
    assert "CRC" in refusal(read, bytes(data))


def test_paths_out_of_the_archive_are_names_only(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = inner / "evil.tar"
    path.write_bytes(tar(folder="../../"))
    assert reading.read_archive(path) == FILES
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "evil.tar"]


# -- archives that are not ----------------------------------------------------------------------------------


def test_every_prefix_of_a_compressed_archive_is_refused(tmp_path):
    data, path = gzip.compress(tar()), tmp_path / "cut.tar.gz"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size >= 2:
            assert reading.is_archive(path)
        refusal(reading.read_archive, path)
    path.write_bytes(data)
    assert reading.read_archive(path) == FILES


def test_a_prefix_of_a_plain_archive_is_refused_or_lacks_whole_files(tmp_path):
    data, path = tar(), tmp_path / "cut.tar"
    complete = len(data) - len(END)
    for size in range(0, len(data), 13):
        path.write_bytes(data[:size])
        try:
            files = reading.read_archive(path)
        except ArchiveError:
            assert size < complete
        else:
            assert files.items() <= FILES.items()
            assert (files == FILES) == (size >= complete)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_model_cut_short_is_never_loaded(tmp_path, pack):
    data, path = pack(tar(LEAN)), tmp_path / "model.tar.gz"
    ends = [0, 1, 2, 3, 100, 256, 257, 262, 511, 512, 513, 1024, len(data) - len(END) - 1]
    for size in [*ends, *range(5_000, len(data) - len(END), len(data) // 20)]:
        path.write_bytes(data[:size])
        refusal(Model.load, path, kind=ModelError)
    path.write_bytes(data)
    assert Model.load(path).is_export


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_a_compressed_archive_changes_no_content(tmp_path, position, bit):
    data = bytearray(gzip.compress(tar(), mtime=0))
    data[position % len(data)] ^= 1 << bit
    path = tmp_path / "flipped.tar.gz"
    path.write_bytes(data)
    with contextlib.suppress(ArchiveError):
        assert reading.read_archive(path) == FILES  # the bit was one of the header's that mean nothing


@given(st.binary(max_size=3000), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path, data, magic):
    path = tmp_path / "random"
    path.write_bytes(magic + data)
    refusal(reading.read_archive, path)
    refusal(Model.load, path, kind=ModelError)


@given(
    st.lists(st.tuples(st.integers(0, 511), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_headers_with_a_right_checksum(tmp_path, changes, data):
    header = bytearray(member("enc.onnx", b"abc")[:512])
    for position, values in changes:
        header[position : position + len(values)] = values
    header = header[:512]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "damaged.tar"
    path.write_bytes(bytes(header) + data.draw(st.binary(max_size=600)) + tar())
    with contextlib.suppress(ArchiveError):
        names = reading.read_archive(path)
        assert all(name == "config.ini" or name.endswith(".onnx") for name in names)
        assert not any("/" in name for name in names)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [*SPECIAL.values(), tarfile.GNUTYPE_SPARSE], ids=[*SPECIAL, "sparse"])
def test_links_and_special_files_under_a_needed_name(read, name, kind):
    files = {key: value for key, value in FILES.items() if key != name}
    special = member(f"tmp/{name}", kind=kind, linkname="/etc/passwd")
    assert "link or special file" in refusal(read, special + tar(files))


@pytest.mark.parametrize("name", FILES)
def test_two_members_of_one_name(read, name):
    assert f"more than one {name}" in refusal(read, member(f"other/{name}", b"x") + tar())


@pytest.mark.parametrize("size", ["-1", "-512", "-100000", "1e3", "", "9" * 30])
def test_sizes_that_are_none(read, size):
    record = b" size=%s\n" % size.encode()
    record = str(len(record) + 2).encode() + record
    with contextlib.suppress(ArchiveError):
        assert read(member("pax", record, tarfile.XHDTYPE) + member("enc.onnx") + END) == {"enc.onnx": b""}


def compressed_zeros(mebibytes, before=b""):
    packer = zlib.compressobj(1, wbits=31)
    zeros = b"\0" * (1 << 20)
    return (
        packer.compress(before) + b"".join(packer.compress(zeros) for _ in range(mebibytes)) + packer.flush()
    )


BOMBS = {
    "needed member": ("enc.onnx", tarfile.REGTYPE, "limit"),
    "other member": ("other", tarfile.REGTYPE, "unpacked"),
    "long name": ("././@LongLink", tarfile.GNUTYPE_LONGNAME, "unpacked"),
    "long link": ("././@LongLink", tarfile.GNUTYPE_LONGLINK, "unpacked"),
    "extended header": ("pax", tarfile.XHDTYPE, "unpacked"),
    "global header": ("pax", tarfile.XGLTYPE, "unpacked"),
}


def test_bombs_end_long_before_they_are_unpacked(read, monkeypatch):
    """A fortieth of the real limit, so that the test is quick."""
    limit = reading._MAX_TOTAL // 40
    monkeypatch.setattr(reading, "_MAX_TOTAL", limit)
    monkeypatch.setattr(reading, "_MAX_FILE", limit // 2)
    for name, tag, reason in BOMBS.values():
        data = compressed_zeros(40, member(name, kind=tag, size=40 << 20)[:512])
        assert len(data) < limit // 10
        tracemalloc.start()
        assert reason in refusal(read, data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * limit


def test_limits_leave_room_for_official_exports_and_not_much_more():
    official = 4 << 20  # the largest graph has 3.2 MiB
    assert 4 * official <= reading._MAX_FILE < reading._MAX_TOTAL <= 1 << 28


def test_a_file_above_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_FILE", 100)
    (tmp_path / "enc.onnx").write_bytes(b"x" * 101)
    assert "more than" in refusal(reading.read_folder, tmp_path)
    assert "more than" in refusal(reading.read_single, tmp_path / "enc.onnx")
    (tmp_path / "enc.onnx").write_bytes(b"x" * 100)
    assert reading.read_folder(tmp_path) == {"enc.onnx": b"x" * 100}


def test_more_members_than_any_model_has(read, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_MEMBERS", 50)
    others = [member(f"other{i}") for i in range(46)]
    assert read(b"".join(others) + tar()) == FILES
    assert "more than 50 members" in refusal(read, b"".join([*others, member("x")]) + tar())


@pytest.mark.parametrize(
    "header",
    [
        member("././@LongLink", b"a" * 300, tarfile.GNUTYPE_LONGNAME),
        member("pax", b"12 path=abc\n", tarfile.XHDTYPE),
        member("pax", b"12 path=abc\n", tarfile.XGLTYPE),
    ],
    ids=["long names", "extended headers", "global headers"],
)
def test_headers_upon_headers(read, header):
    with contextlib.suppress(ArchiveError):
        assert read(header * 3000 + tar()).keys() <= {*FILES}


# -- other things than files --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    pipe, refused = tmp_path / "enc.onnx", []
    os.mkfifo(pipe)

    def run():
        refused.extend(refusal(call, pipe) for call in (reading.is_archive, reading.read_single, Model.load))
        refused.append(refusal(Model.load, tmp_path, kind=ModelError))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert ["not a plain file" in message for message in refused] == [True, True, True, False]
    assert reading.read_folder(tmp_path) == {}


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_is_not_read(device):
    if not os.path.exists(device):  # noqa: PTH110
        pytest.skip(f"no {device} here")
    assert "not a plain file" in refusal(Model.load, device)


def test_what_the_system_refuses_to_read(tmp_path, monkeypatch):
    (tmp_path / "enc.onnx").write_bytes(b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", refuse)
        for call, path in ((Model.load, tmp_path / "enc.onnx"), (reading.read_folder, tmp_path)):
            assert "cannot be read (Permission denied)" in refusal(call, path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.iterdir", refuse)
        assert "cannot be read (Permission denied)" in refusal(Model.load, tmp_path)
