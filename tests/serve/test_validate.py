from __future__ import annotations

import json

import numpy as np
import pytest
from bmnas_serve.codec import decode_request, encode_tensor
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import FormatError
from bmnas_serve.manifest import TensorSpec

INPUTS = (TensorSpec("image", (-1, 2, 3), "uint8"), TensorSpec("sound", (-1, 4), "float32"))
OUTPUTS = (TensorSpec("logits", (-1, 3), "float32"),)


def tensor(name, shape, dtype="float32"):
    return encode_tensor(name, np.ones(shape, dtype))


def check(*tensors, outputs=(), inputs=INPUTS, max_batch=8):
    asked = {"inputs": tensors, "outputs": [{"name": name} for name in outputs]}
    return decode_request(json.dumps(asked).encode(), inputs, OUTPUTS, max_batch).inputs


IMAGE = tensor("image", (2, 2, 3), "uint8")
SOUND = tensor("sound", (2, 4))


def test_a_request_that_fits_comes_in_the_order_of_the_model():
    assert list(check(SOUND, IMAGE, outputs=("logits",))) == ["image", "sound"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((IMAGE,), 'inputs: received "image", but the model also needs "sound"'),
        ((), 'inputs: received none, but the model needs "image", "sound"'),
        (
            (IMAGE, SOUND, tensor("smell", (2,))),
            'inputs: received "smell", expected the model\'s inputs "image", "sound"',
        ),
        ((IMAGE, SOUND, SOUND), 'inputs: "sound" stands twice, expected once'),
        (
            (tensor("image", (2, 2, 3)), SOUND),
            'input "image": datatype: received "FP32", expected UINT8',
        ),
        (
            (IMAGE, tensor("sound", (2, 5))),
            'input "sound": received the shape [2, 5], expected [-1, 4]',
        ),
        ((IMAGE, tensor("sound", (4,))), "received the shape [4], expected [-1, 4]"),
        ((IMAGE, tensor("sound", (2, 4, 1))), "received the shape [2, 4, 1]"),
        (
            (IMAGE, tensor("sound", (3, 4))),
            'the batch is 2 in "image", 3 in "sound", expected one size for all',
        ),
        (
            (tensor("image", (9, 2, 3), "uint8"), tensor("sound", (9, 4))),
            "received a batch of 9, expected at most 8",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_refused(tensors, message):
    with pytest.raises(FormatError) as caught:
        check(*tensors)
    assert message in str(caught.value)


def test_the_largest_batch_is_served():
    assert len(check(tensor("image", (8, 2, 3), "uint8"), tensor("sound", (8, 4)))) == 2


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("scores",), 'outputs: received "scores", expected the model\'s outputs "logits"'),
        (("logits", "logits"), 'outputs: "logits" stands twice'),
    ],
)
def test_outputs_that_the_model_has_not(outputs, message):
    with pytest.raises(FormatError) as caught:
        check(IMAGE, SOUND, outputs=outputs)
    assert message in str(caught.value)


def test_inputs_of_a_bare_model_may_have_no_batch():
    inputs = (TensorSpec("x", (-1, -1), "float32"), TensorSpec("scale", (), "float32"))
    assert len(check(tensor("x", (3, 7)), tensor("scale", ()), inputs=inputs)) == 2


def test_an_unknown_input_is_told_before_its_elements_are_counted():
    with pytest.raises(FormatError, match='received "smell", expected the model\'s inputs'):
        check({**SOUND, "name": "smell", "shape": [1]})


MANY = 20_000


def long(dtype, values):
    """Return what is made of a list so long that it is read as an array."""
    data = {"name": "x", "shape": [1, MANY], "datatype": PROTOCOL[dtype], "data": values}
    body = json.dumps({"inputs": [data]}).encode()
    return decode_request(body, (TensorSpec("x", (-1, MANY), dtype),), OUTPUTS, 8).inputs["x"]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint8", [*range(200)] * 100),
        ("int64", [-(2**62), *range(MANY - 1)]),
        ("uint64", [2**64 - 1, *range(MANY - 1)]),
        ("float32", [0.1, 3, *range(MANY - 2)]),
        ("float64", [1e300, *range(MANY - 1)]),
        ("bool", [True, False] * (MANY // 2)),
    ],
)
def test_long_lists_hold_what_short_ones_do(dtype, values):
    found = long(dtype, values)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array([values], dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("uint8", 256, "received 256, out of range for UINT8"),
        ("uint8", -1, "received -1, out of range for UINT8"),
        ("int32", 0.5, "element 7000: received 0.5, expected integers of INT32"),
        ("float32", 1e39, r"received 1e\+39, out of range for FP32"),
        ("float32", None, "element 7000: received null, expected numbers of FP32"),
        ("float32", "1", 'element 7000: received "1", expected numbers of FP32'),
        ("bool", 1, "element 0: received 0, expected true or false"),
    ],
)
def test_a_mistake_in_a_long_list_is_told(dtype, value, message):
    values = [0] * MANY
    values[7000] = value
    with pytest.raises(FormatError, match=message):
        long(dtype, values)


def test_a_long_list_of_another_length_is_told():
    with pytest.raises(FormatError, match="received 19,999 elements, expected 20,000"):
        long("float32", [0.5] * (MANY - 1))
