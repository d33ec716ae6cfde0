from __future__ import annotations

import pytest
from bmnas_serve import grpc_wire
from bmnas_serve.errors import FormatError
from bmnas_serve.grpc_codec import read_message
from bmnas_serve.grpc_messages import ModelInferRequest
from bmnas_serve.grpc_wire import split
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

SHORT = st.text(max_size=20)
PARAMETERS = st.dictionaries(SHORT, st.builds(lambda n: {"int64_param": n}, st.integers(-9, 9)))
TENSORS = st.fixed_dictionaries(
    {
        "name": SHORT,
        "shape": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "parameters": PARAMETERS,
    }
)
MESSAGES = st.builds(
    ModelInferRequest,
    model_name=SHORT,
    id=SHORT,
    parameters=PARAMETERS,
    inputs=st.lists(TENSORS, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=4),
)


@given(MESSAGES, MESSAGES)
def test_the_bytes_of_tensors_are_split_off(first, second):
    # Two messages, one behind the other, are one to protobuf: fields may come in any order.
    content = first.SerializeToString() + second.SerializeToString()
    rest, raw = split(content, 7)
    whole = ModelInferRequest.FromString(content)
    assert [bytes(part) for part in raw] == list(whole.raw_input_contents)
    whole.ClearField("raw_input_contents")
    assert ModelInferRequest.FromString(rest) == whole


@given(MESSAGES, st.integers(0, 200))
def test_a_message_that_ends_too_soon_is_none(message, size):
    content = message.SerializeToString()[:size]
    try:
        ModelInferRequest.FromString(content)
    except DecodeError:
        with pytest.raises(DecodeError):
            ModelInferRequest.FromString(split(content, 7)[0])
    else:
        split(content, 7)


def nested(*numbers: int, within: bytes) -> bytes:
    """Return a field in a field, by their numbers."""
    for number in reversed(numbers):
        size, length = len(within), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        within = bytes([number << 3 | 2]) + length + bytes([size]) + within
    return within


@pytest.mark.parametrize(
    "content",
    [
        nested(7, within=b"") * 5000,
        nested(5, within=b"") * 5000,
        nested(5, 4, within=b"") * 3000,
        nested(5, within=nested(4, within=b"") * 5000),
        nested(5, 4, 2, within=b"\x08\x01" * 5000),
        nested(5, 5, within=nested(8, within=b"") * 5000),
        nested(6, 2, within=nested(2, within=b"") * 5000),
        b"\x78\x01" * 5000,  # a field that the message does not have
    ],
)
def test_too_many_parts_are_refused_before_they_are_parsed(content):
    ModelInferRequest.FromString(content)
    with pytest.raises(FormatError, match="has more than 4,096 fields: send fewer"):
        read_message(content)


def test_many_integers_are_sent_as_bytes(monkeypatch):
    monkeypatch.setattr(grpc_wire, "_INTEGERS", 101)
    contents = {"uint_contents": range(101)}
    tensor = {"name": "x", "datatype": "UINT8", "shape": [101], "contents": contents}
    message = ModelInferRequest(inputs=[tensor, tensor])
    with pytest.raises(FormatError, match="received 204 bytes of integers as contents, expected"):
        read_message(message.SerializeToString())
    del message.inputs[1]
    message.inputs[0].contents.uint_contents.pop()
    message.inputs[0].shape[0] = 1
    head, raw = read_message(message.SerializeToString())
    assert (list(head.inputs[0].contents.uint_contents), raw) == (list(range(100)), [])
