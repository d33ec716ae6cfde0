from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bmnas_serve import strict_json
from bmnas_serve.strict_json import parse_json
from hypothesis import example, given, settings
from hypothesis import strategies as st

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@pytest.fixture(params=[4, 16_384])
def step(request, monkeypatch):
    """Read texts longer than this in steps of at most this."""
    monkeypatch.setattr(strict_json, "_STEP", request.param)
    return request.param


def in_steps(text: bytes, step: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_STEP", step)
        return parse_json(text)


@settings(deadline=None)
@given(VALUES, st.sampled_from([None, 1, "\t"]), st.sampled_from([64, 200]))
@example([[1], [2, [3]], "a", 4], None, 64)
def test_a_text_in_steps_is_read_as_json_reads_it(value, indent, step):
    text = json.dumps(value, indent=indent).encode()
    assert in_steps(text, step) == json.loads(text)


@settings(deadline=None)
@given(st.text('[]{}",:0 1\\-e.tn', max_size=20))
@example("[1,]")
@example("[,[1]]")
@example("[[1],,[2]]")
@example("[[1] [2]]")
@example("[1 [2]]")
@example('{"a":1,}')
@example("[[]1]")
@example("[[1],2]")
def test_what_is_no_json_is_refused_in_steps_too(middle):
    text = f"[0,0,0,0,0,0,0,0,0,{middle}]".encode()
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"received|expected|twice|Invalid"):
            in_steps(text, 16)
        return
    if "stands twice" not in str(outcome := _outcome(text)):
        assert outcome == expected


def _outcome(text: bytes) -> Any:
    try:
        return in_steps(text, 16)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1, 2, NaN]", "NaN|unexpected"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        (b'["\xff"]', "utf-8"),
        (b'["\n"]', "Invalid control character"),
        (b"[1, 2", "expected the end of a list|Expecting"),
        (b'{"a" 1}', "expected :|Expecting"),
        (b"{1: 2}", "a key in quotes|Expecting"),
        (b"[1] 2", "nothing more|Extra data"),
        (b'["open', "a string in quotes|Unterminated"),
    ],
)
def test_each_mistake_is_told(step, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


EXACT = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(EXACT | st.sampled_from([True, None]), max_size=12), st.sampled_from([40, 80]))
@settings(deadline=None)
def test_numbers_in_arrays_are_those_of_the_list(values, step):
    text = json.dumps({"data": [*range(30), *values]}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_STEP", step)
        patch.setattr(strict_json, "_MANY", 2)
        data = parse_json(text, arrays="data")["data"]
    expected = json.loads(text)["data"]
    if isinstance(data, list):
        assert data == expected
    else:
        assert data.tolist() == pytest.approx(expected, rel=0)
        assert (data.dtype == np.float64) == any(type(value) is float for value in expected)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ("1," * 19_999 + "1", np.int64),
        ("1.5," * 19_999 + "1", np.float64),
        ("true," * 19_999 + "false", np.bool_),
        (f"{2**64 - 1}," * 19_999 + "1", np.uint64),
    ],
)
def test_many_values_of_one_kind_are_an_array(values, dtype):
    data = parse_json(b'{"data": [%s]}' % values.encode(), arrays="data")["data"]
    assert data.dtype == dtype
    assert data.tolist() == json.loads(f"[{values}]")


@pytest.mark.parametrize(
    "value", ["null,", "[1,1,1,1,1,1,1,null,1,1,1,1,1,1,1,1,1,1,1,1],", f"-1,{2**64 - 1},"]
)
def test_values_that_make_no_array_are_taken_up_to_a_million(value):
    for count, taken in ((5_000, True), (1_200_000, False)):
        data = value * (count // value.count(",")) + ("1," * 9_999) + "0"
        if taken:
            read = parse_json(b'{"data": [%s]}' % data.encode(), arrays="data")["data"]
            assert read == json.loads(f"[{data}]")
            continue
        with pytest.raises(ValueError, match=r"has more than 100,000 .*, or 10,000 other values"):
            parse_json(b'{"data": [%s]}' % data.encode(), arrays="data")


def test_a_place_far_into_the_text_is_named():
    text = b"[" + b"1," * 20_000 + b"x]"
    with pytest.raises(ValueError, match="received 'x]' at byte 40,001, expected JSON"):
        parse_json(text)


def test_keys_are_compared_in_linear_time():
    # Quadratic, 90,000 keys would take hours.
    text = b"{" + b",".join(b'"k%d":0' % n for n in range(90_000)) + b"}"
    assert len(parse_json(text)) == 90_000
    with pytest.raises(ValueError, match="the key 'k0' stands twice"):
        parse_json(text[:-1] + b',"k0":0}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" + b"{}," * 150_000 + b"{}]", "more than 100,000 objects, lists and strings"),
        (b'{"data": [' + b"[]," * 100_000 + b"[]]}", "more than 100,000"),
        (b"[" * 100_000, "nested too deeply"),
        (b'"' + b"a" * 300_000 + b'"', "at most 262,144 bytes"),
        (b"[" + b"1" * 20_000 + b"]", "within 16,384 bytes"),
    ],
)
def test_what_would_take_too_long_or_too_much_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"1," * 20_000 + b"1]",
        b"{" + b",".join(b'"k%d":0' % n for n in range(20_000)) + b"}",
        b'{"data": [' + b'"a",' * 20_000 + b"1]}",
    ],
)
def test_beside_the_members_that_hold_arrays_there_are_few_values(text):
    parse_json(text)
    with pytest.raises(ValueError, match="or 10,000 other values"):
        parse_json(text, arrays="data")


def test_members_that_hold_arrays_may_have_many_rows():
    text = json.dumps({"data": [[1, 2]] * 50_000}).encode()
    assert len(parse_json(text, arrays="data")["data"]) == 50_000
