from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bmnas_serve.codec import decode_request, encode_response
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.elements import to_bytes
from bmnas_serve.errors import FormatError
from bmnas_serve.inference import InferRequest, OutputRequest
from bmnas_serve.manifest import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_bundles import classifier_manifest

OUTPUTS = (TensorSpec("a", (-1, 1), "float32"), TensorSpec("b", (-1, 1), "float32"))


def read(head: Any, binary: bytes, *specs: TensorSpec, padding: int = 0) -> InferRequest:
    """Decode a body of JSON, ``padding`` blanks, and the bytes of tensors."""
    text = json.dumps(head).encode() + b" " * padding
    return decode_request(text + binary, specs, OUTPUTS, 1 << 20, len(text))


def tensor(name: str, array: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": PROTOCOL[array.dtype.name],
        "parameters": {"binary_data_size": array.nbytes},
        **changes,
    }


def refusal(head: Any, binary: bytes, *specs: TensorSpec) -> str:
    with pytest.raises(FormatError) as caught:
        read(head, binary, *specs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


finite = st.sampled_from([np.dtype(name) for name in PROTOCOL]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False),
    )
)


@given(finite, st.integers(0, 7))
def test_arrays_survive_encoding_and_decoding_wherever_they_begin(array, padding):
    spec = TensorSpec("x", (-1,) * array.ndim, array.dtype.name)
    received = read({"inputs": [tensor("x", array)]}, to_bytes(array), spec, padding=padding)
    np.testing.assert_array_equal(received.inputs["x"], array, strict=True)
    assert received.inputs["x"].flags.aligned


def test_bytes_are_little_endian_and_row_major():
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    assert to_bytes(array) == np.arange(6, dtype="<i4").tobytes()


X = TensorSpec("x", (-1, 2), "float32")
FLAG = TensorSpec("flag", (-1,), "bool")
ARRAY = np.array([[1, -2]], np.float32)
YES = np.array([True])


def test_tensors_stand_in_the_order_of_the_json_whatever_is_json_among_them():
    other = np.array([[3, 4]], np.float32)
    specs = (X, FLAG, TensorSpec("y", (-1, 2), "float32"))
    flag = {"name": "flag", "shape": [1], "datatype": "BOOL", "data": [True]}
    head = {"inputs": [tensor("y", other), flag, tensor("x", ARRAY)]}
    inputs = read(head, to_bytes(other) + to_bytes(ARRAY), *specs).inputs
    assert list(inputs) == ["x", "flag", "y"]
    np.testing.assert_array_equal(inputs["x"], ARRAY, strict=True)
    np.testing.assert_array_equal(inputs["y"], other, strict=True)


@pytest.mark.parametrize(
    ("head", "binary", "message"),
    [
        (tensor("x", ARRAY), b"", "add up to 8 bytes, but 0 follow the JSON"),
        (tensor("x", ARRAY), bytes(9), "add up to 8 bytes, but 9 follow the JSON"),
        (
            tensor("x", ARRAY, parameters={"binary_data_size": 4}),
            bytes(4),
            'input "x": data: received 4 bytes, expected 8 for FP32 of the shape [1, 2]',
        ),
        (
            tensor("x", ARRAY, parameters={"binary_data_size": -8}),
            b"",
            "inputs[0].parameters.binary_data_size: received -8, expected an integer from 0",
        ),
        (
            tensor("x", ARRAY, parameters={"binary_data_size": 2**63 - 1}),
            b"",
            "but 0 follow the JSON",
        ),
        (tensor("x", ARRAY, parameters={"binary_data_size": 2**63}), b"", "from 0 to 2^63 - 1"),
        (tensor("x", ARRAY, shape=[2**62, 2]), bytes(8), "received a batch of 4611686018427387904"),
        (tensor("x", ARRAY, data=[1, 2]), bytes(8), "has data and a binary_data_size"),
        (tensor("x", ARRAY, datatype="BYTES"), bytes(8), 'received "BYTES", expected FP32'),
        (tensor("x", ARRAY), np.array([1, np.nan], "f4").tobytes(), "element 1: received nan"),
        (tensor("x", ARRAY), np.array([-np.inf, 1], "f4").tobytes(), "element 0: received -inf"),
        (
            tensor("x", ARRAY, parameters={"shared_memory_region": "r"}),
            b"",
            "inputs[0].parameters.shared_memory_region: shared memory is not supported",
        ),
        (tensor("x", ARRAY, parameters={"content_type": "np"}), b"", 'unknown field "content_ty'),
    ],
)
def test_tensors_that_do_not_fit(head, binary, message):
    assert message in refusal({"inputs": [head]}, binary, X)


def test_booleans_are_0_or_1():
    head = {"inputs": [tensor("flag", np.array([True, False]))]}
    assert read(head, b"\1\0", FLAG).inputs["flag"].tolist() == [True, False]
    assert "element 1: received 2, expected 0 or 1 for BOOL" in refusal(head, b"\0\2", FLAG)


def test_the_json_ends_within_the_body():
    with pytest.raises(FormatError, match="received 2 bytes, expected at least the 3 of the"):
        decode_request(b"{}", (X,), OUTPUTS, 8, 3)
    with pytest.raises(FormatError, match="the body is not JSON"):
        decode_request(b'{"inputs": []}', (X,), OUTPUTS, 8, 5)


@given(st.binary(max_size=80), st.integers(0, 100))
def test_any_body_is_decoded_or_refused(body, json_size):
    try:
        request = decode_request(body, (X,), OUTPUTS, 8, json_size)
    except FormatError:
        return
    assert isinstance(request, InferRequest)


@pytest.mark.parametrize(
    ("asked", "outputs", "expected"),
    [
        ({}, [], [False, False]),
        ({"binary_data_output": True}, [], [True, True]),
        ({"binary_data_output": True}, [{"name": "b"}], [True]),
        ({}, [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}], [True, False]),
        (
            {"binary_data_output": True},
            [{"name": "a", "parameters": {"binary_data": False}}],
            [False],
        ),
    ],
)
def test_which_outputs_are_bytes(asked, outputs, expected):
    head = {"inputs": [tensor("x", ARRAY)], "parameters": asked, "outputs": outputs}
    request = read(head, to_bytes(ARRAY), X)
    assert [output.binary for output in request.outputs] == expected


def test_a_response_of_bytes_and_json():
    outputs = {"a": np.array([[1.5]], np.float32), "b": YES}
    request = InferRequest(None, {}, (OutputRequest("a", binary=True), OutputRequest("b")))
    body, binary = encode_response("m", "1", request, outputs)
    assert binary == [np.float32(1.5).tobytes()]
    assert body["outputs"] == [
        {
            "name": "a",
            "datatype": "FP32",
            "shape": [1, 1],
            "parameters": {"binary_data_size": 4},
        },
        {"name": "b", "datatype": "BOOL", "shape": [1], "data": [True]},
    ]


PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32)


@pytest.mark.parametrize(
    ("output", "classes", "texts"),
    [
        ("probabilities", 1, ["0.5:1:dog", "0.7:2:owl"]),
        ("probabilities", 2, ["0.5:1:dog", "0.25:0:cat", "0.7:2:owl", "0.2:1:dog"]),
        ("probabilities", 9, 3),
        ("attention", 1, ["0.5:1", "0.7:2"]),
    ],
)
def test_classification(output, classes, texts):
    request = InferRequest(None, {}, (OutputRequest(output, classes=classes),))
    body, _ = encode_response("m", "1", request, {output: PROBABILITIES}, classifier_manifest())
    [answer] = body["outputs"]
    number = texts if isinstance(texts, int) else len(texts) // 2
    assert (answer["datatype"], answer["shape"]) == ("BYTES", [2, number])
    assert len(answer["data"]) == 2 * number
    if isinstance(texts, list):
        assert answer["data"] == texts


def test_classification_in_bytes_has_the_length_before_each_text():
    request = InferRequest(None, {}, (OutputRequest("logits", binary=True, classes=1),))
    outputs = {"logits": PROBABILITIES[:1]}
    body, binary = encode_response("m", "1", request, outputs, classifier_manifest())
    assert binary == [b"\x09\0\0\0" + b"0.5:1:dog"]
    assert body["outputs"][0]["parameters"] == {"binary_data_size": 13}
