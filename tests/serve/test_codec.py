from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bmnas_serve.codec import decode_request, encode_response, encode_tensor
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import FormatError
from bmnas_serve.inference import InferRequest, OutputRequest
from bmnas_serve.manifest import TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

OUTPUTS = (TensorSpec("a", (-1, 1), "float32"), TensorSpec("b", (-1, 1), "float32"))

NUMPY = {protocol: name for name, protocol in PROTOCOL.items()}


def body(data: Any, shape: Any, datatype: Any = "FP32", **fields: Any) -> bytes:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def read(content: bytes, rank: int = 1, datatype: str = "FP32") -> InferRequest:
    """Decode a request to a model of one input, whose axes may have any length."""
    spec = TensorSpec("x", (-1,) * rank, NUMPY[datatype])
    return decode_request(content, (spec,), OUTPUTS, 1 << 20)


def decode(data: Any, shape: Any, datatype: str = "FP32", **fields: Any) -> np.ndarray:
    rank = len(shape) if isinstance(shape, list) else 1
    return read(body(data, shape, datatype, **fields), rank, datatype).inputs["x"]


def refusal(content: bytes, rank: int = 1, datatype: str = "FP32") -> str:
    with pytest.raises(FormatError) as caught:
        read(content, rank, datatype)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


arrays = st.sampled_from([np.dtype(name) for name in PROTOCOL]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False),
    )
)


@settings(deadline=None)
@given(arrays, st.booleans())
def test_arrays_survive_encoding_and_decoding(array, nested):
    tensor = encode_tensor("x", array)
    if nested:
        tensor["data"] = array.tolist()
    content = json.dumps({"inputs": [tensor]}, allow_nan=False).encode()
    received = read(content, array.ndim, tensor["datatype"]).inputs["x"]
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array, strict=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "id", "parameters", "name", "shape", "data"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_decoded_or_refused(content):
    try:
        request = read(content)
    except FormatError:
        return
    assert isinstance(request, InferRequest)


@settings(deadline=None)
@given(json_values, json_values, st.sampled_from(list(NUMPY)))
def test_any_tensor_is_decoded_or_refused(data, shape, datatype):
    try:
        array = decode(data, shape, datatype)
    except FormatError:
        return
    assert list(array.shape) == shape
    assert np.isfinite(array).all()


def test_request_of_the_protocol():
    request = read(
        json.dumps(
            {
                "id": "42",
                "parameters": {"priority": 0, "timeout": 1_500_000, "sequence_id": 0},
                "inputs": [
                    {
                        "name": "x",
                        "shape": [2, 2],
                        "datatype": "INT8",
                        "parameters": {},
                        "data": [[1, 2], [3, -4]],
                    }
                ],
                "outputs": [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}],
            }
        ).encode(),
        2,
        "INT8",
    )
    assert request.id == "42"
    assert request.timeout == 1.5
    assert request.outputs == (OutputRequest("b"), OutputRequest("a"))
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2], [3, -4]], np.int8))


@pytest.mark.parametrize("outputs", [None, []])
def test_optional_fields_may_be_null(outputs):
    request = read(body([1], [1], id=None, parameters=None, outputs=outputs))
    assert (request.id, request.timeout) == (None, None)
    assert request.outputs == (OutputRequest("a"), OutputRequest("b"))


def test_null_is_not_taken_for_nan():
    # The trap: numpy makes NaN of it without a word.
    assert np.isnan(np.asarray([None], dtype=object).astype("f4")).all()
    assert "data: element 1: received null, expected numbers of FP32" in refusal(
        body([1.0, None], [1, 2]), 2
    )


@pytest.mark.parametrize(
    ("data", "datatype", "message"),
    [
        (["1", 2], "FP32", 'element 0: received "1", expected numbers of FP32'),
        ([1, True], "FP32", "element 1: received true"),
        ([1, 2.0], "INT64", "element 1: received 2.0, expected integers of INT64"),
        ([False, 1], "UINT8", "element 0: received false"),
        ([1, 0], "BOOL", "element 0: received 1, expected true or false"),
        ([1, [2]], "FP32", "element 1: received [2]"),
        ([1, {}], "FP32", "element 1: received {}"),
        ([0, 256], "UINT8", "received 256, out of range for UINT8: 0 to 255"),
        ([-1, 0], "UINT64", "received -1, out of range"),
        ([0, 2**63], "INT64", "out of range for INT64"),
        ([0, 10**400], "INT64", "out of range for INT64"),
        ([0, 10**400], "FP64", "out of range for FP64"),
        ([0, -(10**400)], "FP32", "out of range for FP32"),
        ([0, 1e39], "FP32", "received 1e+39, out of range for FP32: -3.40282e+38 to 3.40282e+38"),
        ([0, 65520], "FP16", "received 65520, out of range for FP16"),
    ],
)
def test_elements_that_the_datatype_cannot_hold(data, datatype, message):
    assert message in refusal(body(data, [1, 2], datatype), 2, datatype)


def test_decimal_beyond_every_float_is_out_of_range():
    content = body([0.5], [1]).replace(b"0.5", b"1e999")
    assert "out of range for FP32" in refusal(content)


def test_largest_float_survives_its_shortest_spelling():
    # 3.4028235e38 is the shortest decimal of float32's maximum, and a little above it.
    assert decode([3.4028235e38], [1])[0] == np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([1, 2, 3], [2, 2], "received 3 elements, expected 4 for the shape [2, 2]"),
        ([], [1, 2], "received 0 elements, expected 2"),
        ([[1, 2], [3]], [2, 2], "received 1 item on axis 1, expected a list of 2"),
        ([[1, 2]], [2, 2], "received 1 item on axis 0, expected a list of 2"),
        ([[1, 2], 3], [2, 2], "received 3 on axis 1, expected a list of 2"),
        ([[[1]], [[2]]], [2, 1], "element 0: received [1]"),
        ([[1], [2]], [2], "element 0: received [1]"),
        (1.5, [1], "data: received 1.5, expected a list"),
        ([1], 1, "shape: received 1, expected a list"),
        ([1], [1.0], "received the shape [1.0], expected [-1], where -1 is any length from 1"),
        ([1], [True], "received the shape [true], expected [-1]"),
        ([], [0], "received the shape [0], expected [-1]"),
        ([1], [-1], "received the shape [-1]"),
        ([1], [1, 2**62], "received 1 element, expected"),
        ([1], [1, 2**63], "received the shape [1, 9223372036854775808], expected [-1, -1]"),
        ([1], [10**4298, 10**4298], "received the shape [1000"),
    ],
)
def test_data_and_shape_must_agree(data, shape, message):
    rank = len(shape) if isinstance(shape, list) else 1
    assert message in refusal(body(data, shape), rank)


LONG = 5000
WHOLE = [[*range(LONG)], [*range(LONG)]]


@pytest.mark.parametrize(
    "rows",
    [
        WHOLE,
        [[0.5] * LONG, [1] * LONG],  # read as arrays of two types
        [[1] * LONG, [2] * (LONG - 1) + [2**63]],  # the second is not read as an array
    ],
)
@pytest.mark.parametrize("nested", [[], [1]])
def test_long_rows_of_nested_lists(rows, nested):
    data = [rows] if nested else rows
    array = decode(data, [*nested, 2, LONG], "FP64")
    np.testing.assert_array_equal(array, np.array(data, np.float64), strict=True)


@pytest.mark.parametrize(
    ("data", "shape", "datatype", "message"),
    [
        (WHOLE, [2, LONG + 1], "INT32", "received 5,000 items on axis 1, expected a list of 5,001"),
        (WHOLE, [2, LONG, 1], "INT32", "received 0 on axis 2, expected a list of 1"),
        (WHOLE, [2 * LONG], "INT32", "received 2 elements, expected 10,000"),
        (WHOLE, [2], "INT32", "element 0: received a list of 5,000 numbers, expected integers"),
        (WHOLE, [2, LONG], "INT8", "received 4999, out of range for INT8"),
        (WHOLE, [2, LONG], "BOOL", "element 0: received 0, expected true or false"),
        ([WHOLE[0], [None] * LONG], [2, LONG], "INT32", "element 5000: received null"),
        ([WHOLE[0], [True] * LONG], [2, LONG], "FP32", "element 5000: received true, expected num"),
        ([WHOLE[0], [0.5] * LONG], [2, LONG], "INT32", "element 5000: received 0.5, expected in"),
        ([[1] * 8] * 5000 + [[1] * 7 + [""]], [5001, 8], "INT32", 'element 40007: received ""'),
        ([[2]] * 9 + [[False] * 1], [10, 1], "BOOL", "element 0: received 2, expected true or"),
        ([WHOLE[0], 3], [2, LONG], "INT32", "received 3 on axis 1, expected a list of 5,000"),
        (1, WHOLE[0], "INT32", "data: received 1, expected a list"),
    ],
)
def test_long_rows_that_do_not_fit(data, shape, datatype, message):
    assert message in refusal(body(data, shape, datatype), len(shape), datatype)


@pytest.mark.parametrize("datatype", ["BYTES", "FP16", "fp32"])
def test_another_datatype_than_the_models(datatype):
    message = refusal(body([1], [1], datatype))
    assert message == f'input "x": datatype: received "{datatype}", expected FP32'
    assert "expected a string" in refusal(body([1], [1], 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON: it is empty"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        ("{}".encode("utf-16"), "the body is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"inputs": [NaN]}', "NaN stands where a finite number is expected"),
        (b'{"inputs": [], "inputs": []}', "the key 'inputs' stands twice"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "the body is not JSON"),
        (b"[]", "the document: received [], expected a JSON object"),
        (b"{}", "the document: lacks 'inputs'"),
        (b'{"inputs": {}}', "inputs: received {}, expected a list"),
        (b'{"inputs": [3]}', "inputs[0]: received 3, expected a JSON object"),
        (b'{"inputs": [{}]}', "inputs[0]: lacks 'name', 'shape', 'datatype'"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}',
            "inputs[0]: lacks 'data', or a binary_data_size in its parameters",
        ),
        (b'{"inputs": [], "output": []}', 'unknown field "output"'),
        (b'{"inputs": [], "id": 3}', "id: received 3, expected a string"),
        (b'{"inputs": [], "outputs": [""]}', 'outputs[0]: received "", expected a JSON object'),
        (b'{"inputs": [], "outputs": [{"name": ""}]}', "outputs[0].name"),
        (b'{"inputs": [], "outputs": "logits"}', "outputs: received"),
        (b'{"inputs": [], "parameters": 1}', "parameters: received 1"),
    ],
)
def test_malformed_bodies(content, message):
    assert message in refusal(content)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_id": 7}, "parameters.sequence_id: sequences are not supported"),
        ({"sequence_id": "a"}, "sequences are not supported: every request stands for itself"),
        ({"sequence_start": True}, "parameters.sequence_start: sequences are not supported"),
        ({"sequence_id": False}, "sequences are not supported"),
        ({"priority": 1}, "priorities are not supported: requests run in their order; leave it"),
        ({"timeout": -1}, "parameters.timeout: received -1, expected an integer from 0"),
        ({"timeout": 10**400}, "expected an integer from 0 to 2^63 - 1"),
        ({"timeout": 1.5}, "parameters.timeout: received 1.5"),
        ({"binary_data_output": 1}, "received 1, expected true or false"),
        ({"temperature": 1}, 'parameters: has the unknown field "temperature", expected binary_'),
    ],
)
def test_parameters_that_are_not_honoured_are_refused(parameters, message):
    assert message in refusal(body([1], [1], parameters=parameters))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shared_memory_region": "r"}, "shared memory is not supported: tensors travel in the"),
        ({"classification": True}, "outputs[0].parameters.classification: received true"),
        ({"binary_data": "yes"}, 'outputs[0].parameters.binary_data: received "yes"'),
        ({"order": 1}, 'outputs[0].parameters: has the unknown field "order"'),
    ],
)
def test_parameters_of_outputs_that_are_not_honoured_are_refused(parameters, message):
    output = {"name": "a", "parameters": parameters}
    assert message in refusal(body([1], [1], outputs=[output]))


def test_response_keeps_the_order_asked_for():
    outputs = {"a": np.array([[1.5]], np.float32), "b": np.array([True])}
    request = InferRequest("7", {}, (OutputRequest("b"), OutputRequest("a")))
    assert encode_response("m", "1", request, outputs) == (
        {
            "model_name": "m",
            "model_version": "1",
            "id": "7",
            "outputs": [
                {"name": "b", "datatype": "BOOL", "shape": [1], "data": [True]},
                {"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.5]},
            ],
        },
        [],
    )
    assert "id" not in encode_response("m", "1", InferRequest(None, {}, ()), outputs)[0]


def test_response_data_is_row_major():
    columns = np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert encode_tensor("x", columns)["data"] == [0, 1, 2, 3, 4, 5]
