from __future__ import annotations

import json

import numpy as np
import pytest
from bmnas_serve.codec import decode_request, encode_tensor
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
