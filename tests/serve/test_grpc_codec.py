from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_serve import elements, grpc_messages
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import FormatError
from bmnas_serve.grpc_codec import decode_message, encode_message, read_message
from bmnas_serve.grpc_messages import SERVICE, ModelInferRequest
from bmnas_serve.inference import InferRequest, OutputRequest
from bmnas_serve.manifest import TensorSpec
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import model_config_pb2, service_pb2

FOLDER = Path(grpc_messages.__file__).parent
OUTPUTS = (TensorSpec("a", (-1, 1), "float32"), TensorSpec("b", (-1, 1), "float32"))
X = TensorSpec("x", (-1, 2), "float32")


def request(*tensors: dict[str, Any], **fields: Any) -> Any:
    return ModelInferRequest(inputs=tensors, **fields)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], **changes}


def decode(message: Any, *specs: TensorSpec) -> InferRequest:
    return decode_message(*read_message(message.SerializeToString()), specs or (X,), OUTPUTS, 8)


def refusal(message: Any, *specs: TensorSpec) -> str:
    with pytest.raises(FormatError) as caught:
        decode(message, *specs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def theirs(descriptor: Any) -> Any:
    for module in (service_pb2, model_config_pb2):
        if descriptor.name in module.DESCRIPTOR.message_types_by_name:
            return module.DESCRIPTOR.message_types_by_name[descriptor.name]
    raise AssertionError(descriptor.full_name)


def compare(ours: Any, other: Any) -> None:
    """Assert that every field of a message is one of the other's."""
    for field in ours.fields:
        found = other.fields_by_name[field.name]
        facts = ("number", "type", "is_repeated")
        assert [getattr(field, fact) for fact in facts] == [getattr(found, fact) for fact in facts]
        if field.message_type:
            compare(field.message_type, found.message_type)
        if field.enum_type:
            names = {value.name: value.number for value in field.enum_type.values}
            assert names.items() <= {v.name: v.number for v in found.enum_type.values}.items()


def test_messages_are_a_part_of_tritons():
    methods = service_pb2.DESCRIPTOR.services_by_name[SERVICE.name].methods_by_name
    for method in SERVICE.methods:
        compare(method.input_type, theirs(method.input_type))
        compare(method.output_type, theirs(method.output_type))
        assert methods[method.name].input_type.full_name == method.input_type.full_name
    # What clients can ask for is read in full, so that nothing is ignored.
    for name in ("ModelInferRequest", "RepositoryModelLoadRequest"):
        ours = {method.input_type.name: method.input_type for method in SERVICE.methods}[name]
        assert len(ours.fields) == len(theirs(ours).fields)


def test_the_descriptors_are_those_of_the_proto_file(tmp_path):
    protoc = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", "-I", str(FOLDER)]
    made = tmp_path / "made.binpb"
    subprocess.run(
        [*protoc, f"--descriptor_set_out={made}", "inference.proto"], check=True, timeout=60
    )
    assert made.read_bytes() == (FOLDER / "inference.binpb").read_bytes()


arrays = st.sampled_from([np.dtype(name) for name in PROTOCOL]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False),
    )
)
CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


@given(arrays, st.booleans())
def test_arrays_survive(array, as_bytes):
    name = array.dtype.name
    spec = TensorSpec("x", (-1,) * array.ndim, name)
    given_tensor = tensor(datatype=PROTOCOL[name], shape=array.shape)
    if as_bytes or name == "float16":
        message = request(given_tensor, raw_input_contents=[array.tobytes()])
    else:
        contents = {CONTENTS[name]: array.ravel().tolist()}
        message = request({**given_tensor, "contents": contents})
    received = decode_message(*read_message(message.SerializeToString()), (spec,), OUTPUTS, 1 << 20)
    np.testing.assert_array_equal(received.inputs["x"], array, strict=True)
    asked = InferRequest(None, {}, (OutputRequest("y", binary=True),))
    answer = encode_message("m", "1", asked, {"y": array})
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (
        PROTOCOL[name],
        list(array.shape),
    )
    assert list(answer.raw_output_contents) == [array.tobytes()]


RAW = {"raw_input_contents": [bytes(8)]}
INT8 = TensorSpec("x", (-1, 2), "int8")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (request(tensor(), raw_input_contents=[b"", b""]), "received 2, expected one for each of"),
        (request(tensor(), raw_input_contents=[bytes(9)]), "received 9 bytes, expected 8 for FP32"),
        (request(tensor()), 'input "x": data: received 0 elements, expected 2'),
        (
            request(tensor(contents={"fp32_contents": [1, 2]}), **RAW),
            "inputs[0]: has contents and raw_input_contents, expected one of them",
        ),
        (
            request(tensor(contents={"fp64_contents": [1, 2]})),
            "inputs[0].contents: received fp64_contents, expected fp32_contents for FP32",
        ),
        (
            request(tensor(contents={"fp32_contents": [1, float("nan")]})),
            "out of range for FP32",
        ),
        (
            request(tensor(shape=[8, 2], contents={"fp32_contents": range(20_000)})),
            "received 20,000 elements, expected 16 for the shape [8, 2]",
        ),
        (request(tensor(datatype="FP16")), 'received "FP16", expected raw_input_contents, or one'),
        (request(tensor(datatype="BYTES"), **RAW), 'received "BYTES", expected FP32'),
        (request(tensor(shape=[-1, 2]), **RAW), "received the shape [-1, 2]"),
        (request(), 'inputs: received none, but the model needs "x"'),
        (
            request(tensor(parameters={"content_type": {"string_param": "np"}}), **RAW),
            'inputs[0].parameters: has the unknown field "content_type", expected shared_memory',
        ),
        (
            request(tensor(), parameters={"priority": {"uint64_param": 1}}, **RAW),
            "parameters.priority: priorities are not supported",
        ),
        (
            request(tensor(), parameters={"timeout": {"string_param": "1"}}, **RAW),
            'parameters.timeout: received "1", expected an integer',
        ),
        (request(tensor(), parameters={"timeout": {}}, **RAW), "timeout: received null"),
        (request(tensor(), outputs=[{"name": "c"}], **RAW), 'outputs: received "c"'),
        (
            request(
                tensor(),
                outputs=[{"name": "a", "parameters": {"binary_data": {"bool_param": True}}}],
                **RAW,
            ),
            'outputs[0].parameters: has the unknown field "binary_data"',
        ),
    ],
)
def test_messages_that_do_not_fit(message, expected):
    assert expected in refusal(message)


def test_integers_are_checked_against_the_datatype():
    message = request(tensor(datatype="INT8", contents={"int_contents": [1, 128]}))
    assert "received 128, out of range for INT8: -128 to 127" in refusal(message, INT8)


@pytest.mark.parametrize("name", CONTENTS)
def test_many_elements_are_made_in_steps(name, monkeypatch):
    monkeypatch.setattr(elements, "_STEP", 3)
    expected = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], name)
    if name != "bool":  # the widest of the type, which another type would round
        expected[0, 0] = (np.finfo if expected.dtype.kind == "f" else np.iinfo)(name).max
    contents = {CONTENTS[name]: expected.ravel().tolist()}
    message = request(tensor(datatype=PROTOCOL[name], shape=[4, 2], contents=contents))
    received = decode(message, TensorSpec("x", (-1, 2), name)).inputs["x"]
    np.testing.assert_array_equal(received, expected, strict=True)


@given(st.binary(max_size=100))
def test_any_message_is_decoded_or_refused(content):
    try:
        request = decode(ModelInferRequest.FromString(content))
    except (DecodeError, FormatError):
        return
    assert isinstance(request, InferRequest)


def test_what_is_asked_for():
    message = request(
        tensor(),
        id="7",
        parameters={"timeout": {"int64_param": 1_500_000}, "sequence_id": {"string_param": ""}},
        outputs=[{"name": "b", "parameters": {"classification": {"int64_param": 3}}}],
        **RAW,
    )
    asked = decode(message)
    assert (asked.id, asked.timeout) == ("7", 1.5)
    assert asked.outputs == (OutputRequest("b", binary=True, classes=3),)
