"""The protobuf reader against messages that the protobuf library wrote, and against bytes that nobody did."""

import contextlib
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfstream.coreml import protobuf
from dfstream.coreml.protobuf import Message
from dfstream.errors import ArchiveError
from handmade import data, entry, number, packed, varint

integers = st.integers(-(2**63), 2**63 - 1)
floats32 = st.floats(width=32, allow_nan=False)


def read(content):
    return Message(content, "file")


def refused(call, match):
    with pytest.raises(ArchiveError, match=match) as caught:
        call()
    assert str(caught.value).startswith("file: damaged, or no Core ML model")


@given(
    st.text(),
    st.lists(integers, max_size=5),
    st.lists(floats32, max_size=5),
    st.lists(st.floats(allow_nan=False), max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    st.lists(st.binary(), max_size=3),
    st.binary(),
)
def test_what_the_protobuf_library_writes(name, dims, floats, doubles, small, strings, raw):
    tensor = onnx.TensorProto(
        name=name, dims=dims, float_data=floats, double_data=doubles, int32_data=small, string_data=strings,
        raw_data=raw, data_type=7,
    )  # fmt: skip
    numbers = {field.name: field.number for field in tensor.DESCRIPTOR.fields}
    found = read(tensor.SerializeToString())
    assert found.text(numbers["name"]) == name
    assert found.integers(numbers["dims"]) == dims  # one by one
    assert found.integers(numbers["int32_data"]) == small  # packed
    assert found.floats(numbers["float_data"], np.float32).tolist() == floats
    assert found.floats(numbers["double_data"], np.float64).tolist() == doubles
    assert bytes(found.data(numbers["raw_data"])) == raw
    assert found.integer(numbers["data_type"]) == 7
    if all(string.isascii() for string in strings):
        assert found.texts(numbers["string_data"]) == [string.decode() for string in strings]


def test_messages_in_messages():
    model = onnx.ModelProto(ir_version=8)
    model.graph.name = "outer"
    model.graph.node.add(op_type="Add")
    model.graph.node.add(op_type="Mul")
    graph = read(model.SerializeToString()).message(7)
    assert graph.text(2) == "outer"
    assert [node.text(4) for node in graph.messages(1)] == ["Add", "Mul"]


def test_what_is_left_out():
    empty = read(b"")
    assert (empty.integer(1), empty.text(1), bytes(empty.data(1)), empty.which(1, 2)) == (0, "", b"", None)
    assert (empty.integers(1), empty.texts(1), empty.messages(1), empty.entries(1)) == ([], [], [], {})
    assert empty.floats(1, np.float32).size == 0
    assert empty.message(1).message(1).integer(1) == 0


def test_maps():
    content = entry(3, "a", number(1, 5)) + entry(3, "b", number(1, 6))
    assert {key: value.integer(1) for key, value in read(content).entries(3).items()} == {"a": 5, "b": 6}
    refused(lambda: read(content + entry(3, "a", b"")).entries(3), "field 3 has a key more than once")


def test_numbers_of_fixed_size_one_by_one():
    content = b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    assert read(content).floats(1, np.float32).tolist() == [1.5, -2]


def test_which():
    content = number(2, 0) + data(5, b"")
    assert read(content).which(1, 2, 3) == 2
    refused(lambda: read(content).which(2, 5), "fields 2 and 5 at once")


def test_nothing_is_split_before_it_is_asked_for():
    """What this package has no use for may be of any form."""
    assert read(data(1, b"\xff\xff") + number(2, 3)).integer(2) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80", "a number that does not end"),
        (b"\x08" + b"\xff" * 11, "a number that does not end"),
        (data(1, b"abc")[:-1], "cut short"),
        (b"\x0a" + varint(2**63), "cut short"),
        (b"\x09" + b"\0" * 7, "cut short"),
        (b"\x0d" + b"\0" * 3, "cut short"),
        (b"\x0b\x0c", "a field of wire type 3"),
        (b"\x0f", "a field of wire type 7"),
        (b"\x00\x00", "field number 0"),
        (number(1, 1) + number(1, 2), "field 1 more than once"),
        (data(1, b""), "field 1 of another type"),
        (number(2, 1) * (protobuf._MAX_FIELDS + 1), "more than 65536 fields"),
    ],
)
def test_what_is_no_message(content, reason):
    refused(lambda: read(content).integer(1), reason)


def test_fields_of_another_type():
    refused(lambda: read(number(1, 1)).text(1), "field 1 of another type")
    refused(lambda: read(number(1, 1)).messages(1), "field 1 of another type")
    refused(lambda: read(number(1, 1)).floats(1, np.float32), "field 1 of another type")
    refused(lambda: read(data(1, b"abc")).floats(1, np.float32), "field 1 of another type")
    refused(lambda: read(b"\x0d" + bytes(4)).floats(1, np.float64), "field 1 of another type")
    refused(lambda: read(b"\x0d" + bytes(4)).integers(1), "field 1 of another type")
    refused(lambda: read(data(1, b"\xff")).text(1), "a name that is not text")
    refused(lambda: read(data(1, packed([0] * 65537))).integers(1), "more than 65536 numbers")


@given(st.binary(max_size=40))
def test_any_bytes(content):
    """Anything gives values or an error of ours."""
    for ask in (
        lambda m: m.integer(1),
        lambda m: m.text(1),
        lambda m: [inner.integer(1) for inner in m.messages(1)],
        lambda m: m.entries(1),
        lambda m: m.integers(1),
        lambda m: m.floats(1, np.float32),
        lambda m: m.which(1, 2),
    ):
        with contextlib.suppress(ArchiveError):
            ask(read(content))


def test_memory_of_bytes_that_are_all_fields():
    content = entry(1, "", number(1, 0) * 60000) * 16 + number(2, 1)
    tracemalloc.start()
    assert read(content).integer(2) == 1
    with contextlib.suppress(ArchiveError):
        read(content).entries(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
