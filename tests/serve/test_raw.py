from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from bmnas_serve.errors import DataError, FormatError, RequestError
from bmnas_serve.forms import Given, read_inputs
from bmnas_serve.manifest import InputSpec
from bmnas_serve.media import container_of
from bmnas_serve.raw import RawInput
from bmnas_serve.sources import Source
from people_bundles import inputs, picture, sound

for package in ("PIL", "soundfile", "soxr", "tokenizers"):
    pytest.importorskip(package)

SPECS = {spec.name: spec for spec in inputs()}


def row(name: str, content: Any) -> np.ndarray:
    given = Given(content) if isinstance(content, bytes) else Given(value=content)
    return RawInput(SPECS[name]).row(given)


def refused(name: str, content: Any, *words: str) -> None:
    with pytest.raises(RequestError) as caught:
        row(name, content)
    assert caught.value.status == 422
    assert f'part "{name}"' in caught.value.message
    assert "expected" in caught.value.message
    for word in words:
        assert word in caught.value.message


def test_a_picture_is_made_as_training_makes_it() -> None:
    for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        made = row("photo", picture(form=form))
        assert (made.shape, made.dtype) == ((6, 4, 3), np.uint8)
        assert np.abs(made.astype(int) - 90).max() <= 4
    refused("photo", b"", "empty file")
    refused("photo", b"none", "not a picture", "JPEG")
    refused("photo", picture()[:80], "cannot be read, perhaps truncated")
    refused("photo", "text", 'received "text"')


def bomb(side: int) -> bytes:
    """Return a PNG of black pixels of one bit whose file is a thousandth of its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_small_files_do_not_become_large_pictures() -> None:
    content = bomb(8200)
    assert len(content) < 20_000
    refused("photo", content, "8200 x 8200 pixels", "at most 64,000,000")
    refused("photo", bomb(20_000), "expected")
    refused("photo", bomb(5001), "5001 x 5001 pixels", "at most 25,000,000")
    # A JPEG is decoded at a fraction of its size.
    assert row("photo", picture((5001, 5001), "JPEG")).shape == (6, 4, 3)


def test_a_sound_is_made_as_training_makes_it() -> None:
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        made = row("sound", sound(form=form))
        assert (made.shape, made.dtype) == ((80,), np.float32)
        assert 0.3 < np.abs(made).max() < 0.5
    refused("sound", b"none", "Format not recognised")
    refused("sound", sound()[:30], "cannot be read")
    # A header that announces 2^31 Hz asks for gigabytes.
    fast = bytearray(sound())
    fast[24:28] = struct.pack("<I", 2**31 - 1)
    refused("sound", bytes(fast), "2147483647 Hz")


def test_a_text_is_cut_into_the_tokens_of_the_bundle() -> None:
    for text in ("A DOG barks", b"A DOG barks", "\ufeffA DOG barks".encode()):
        assert row("title", text).tolist() == [1, 3, 5, 0]
    assert row("title", "dog " * 9).tolist() == [3] * 4
    assert row("title", "").tolist() == [0] * 4
    refused("title", b"\xff", "byte 0 is not UTF-8")
    refused("title", 3, "received 3")
    refused("title", "\ud800", "half of a character pair")
    refused("title", "a" * (2**20 + 1), "1,048,577 characters")
    refused("title", b"a" * (2**20 + 1), "1,048,577 bytes")


def test_fields_are_scaled_as_in_training() -> None:
    assert row("facts", {"age": 7, "city": "Rome"}).tolist() == [1, 0, 0, 1]
    assert row("facts", b'{"age": "7.0", "city": "Rome"}').tolist() == [1, 0, 0, 1]
    assert row("facts", {"city": "Lima"}).tolist() == [0, 1, 0, 0]
    assert row("facts", {"age": None, "city": None}).tolist() == [0, 1, 0, 0]
    refused("facts", {"age": "old"}, "age", '"old"', "a number or null")
    refused("facts", {"age": 1e300}, "too large")
    refused("facts", {"age": [1]}, "age", "[1]")
    refused("facts", {"agee": 1}, '"agee"')
    refused("facts", b"3", "received 3")
    refused("facts", b"age=3", "received no JSON")


def test_numbers_are_the_input_itself() -> None:
    photo = np.arange(72).reshape(6, 4, 3)
    assert (row("photo", photo.tolist()) == photo).all()
    assert row("facts", [1, 2, 3, 4]).tolist() == [1, 2, 3, 4]
    refused("photo", [[0]], "numbers")
    refused("photo", [300] * 72, "out of range")
    refused("sound", [None] * 80, "numbers")


def test_files_are_fitted_to_inputs_that_were_arrays() -> None:
    digits = RawInput(InputSpec("x", (-1, 8, 4), "uint8", "", {"type": "image"}, (0, 16)))
    assert digits.kind == "image"
    assert set(digits.row(Given(picture(level=255))).ravel().tolist()) == {16}
    assert set(digits.row(Given(picture(level=128))).ravel().tolist()) == {8}
    floats = InputSpec("x", (-1, 8, 4, 3), "float32", "", {"type": "image"}, (-1.0, 1.0))
    assert RawInput(floats).row(Given(picture(level=255))).max() == 1
    told = {"type": "waveform", "sample_rate": 8000}
    whole = RawInput(InputSpec("x", (-1, 2400), "int16", "", told)).row(Given(sound()))
    assert 12_000 < whole.max() < 14_000
    for how in ({"type": "image"}, {"type": "waveform"}, {"type": "clip"}, {}, {"type": "tokens"}):
        plain = RawInput(InputSpec("x", (-1, 3), "float32", "", how))
        assert plain.kind == "numbers"
        assert plain.row(Given(b"[1, 2, 3]")).tolist() == [1, 2, 3]


def test_a_rule_of_an_earlier_version_is_told() -> None:
    with pytest.raises(DataError, match="export again"):
        RawInput(InputSpec("x", (-1, 3), "int64", "", {"type": "text", "length": 3}))


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"column": 3},
        {"column": "a", "files": {"type": "image"}},
        {"column": "a", "files": {"type": "image", "height": 0, "width": 3}},
        {"column": "a", "files": {"type": "sculpture"}},
        {"column": "a", "files": {"type": "waveform", "sample_rate": 1e9, "samples": 3}},
        {"vector": [{"column": "a"}]},
        {"vector": [{"column": "a", "mean": 0, "deviation": 0}]},
        {"vector": [{"column": "a", "names": [1]}]},
        {"column": "a", "more": 1},
    ],
)
def test_a_source_of_another_form_is_refused_with_its_place(source: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"^here"):
        Source.from_dict(source, "here")


def test_videos_are_told_by_their_first_bytes() -> None:
    for head, expected in (
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"RIFF\0\0\0\0AVI ", "avi"),
    ):
        assert container_of(io.BytesIO(head + bytes(9))) == expected
    # FFmpeg would open the addresses in it.
    with pytest.raises(DataError, match="not a video"):
        container_of(io.BytesIO(b"#EXTM3U\nhttp://127.0.0.1/"))


def test_a_video_is_made_as_training_makes_it() -> None:
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10, options={})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        for level in range(0, 200, 20):
            frame = np.full((32, 32, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    files = {"frames": 5, "size": 8, "type": "clip"}
    told = {"type": "clip", "source": {"column": "clip", "files": files}}
    one = RawInput(InputSpec("clip", (-1, 5, 8, 8, 3), "uint8", "", told))
    made = one.row(Given(out.getvalue()))
    assert made.shape == (5, 8, 8, 3)
    assert np.abs(made.mean((1, 2, 3)) - [20, 60, 100, 140, 180]).max() < 5
    with pytest.raises(RequestError, match="not a video"):
        one.row(Given(picture()))
    with pytest.raises(RequestError, match="cannot be read"):
        one.row(Given(out.getvalue()[:300]))


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    lines = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), content)
        for name, content in parts
    )
    return lines + b"--%s--\r\n" % boundary.encode()


FORM = "multipart/form-data; boundary=b"


def test_bodies_hold_parts() -> None:
    found = read_inputs(form(("title", b"a dog"), ("photo", b"\x89PNG\r\n")), FORM)
    assert found == {"title": Given(b"a dog"), "photo": Given(b"\x89PNG\r\n")}
    body = {"inputs": {"photo": {"base64": "iVA="}, "title": "a", "facts": {"age": 1}}}
    found = read_inputs(json.dumps(body).encode(), "application/json; charset=utf-8")
    assert found["photo"] == Given(b"\x89P")
    assert found["facts"] == Given(value={"age": 1})


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (form(("a", b"1"), ("a", b"2")), FORM, 'part "a": stands twice'),
        (form(("a", b"1")), "multipart/form-data", "expected a boundary"),
        (form(("a", b"1"))[:-6], FORM, "the body is not multipart/form-data"),
        (b"", FORM, "the body is not multipart/form-data"),
        (b"x" * 99, FORM, "the body is not multipart/form-data"),
        (form(*((str(n), b"") for n in range(99))), FORM, "the body is not multipart/form-data"),
        (b"", "application/json", "the body is not JSON: it is empty"),
        (b"{}", "application/json", "lacks 'inputs'"),
        (b'{"inputs": []}', "application/json", "inputs: received []"),
        (b'{"inputs": {}, "x": 1}', "application/json", 'unknown field "x"'),
        (b'{"inputs": {"a": {"base64": "?"}}}', "application/json", 'input "a": base64'),
        (b'{"inputs": {"a": {"base64": 3}}}', "application/json", 'input "a": base64'),
    ],
)
def test_a_malformed_body_is_refused(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_inputs(body, content_type)
    assert message in str(caught.value)


def test_a_body_of_another_type_is_refused() -> None:
    for content_type in ("", "text/plain", "image/png"):
        with pytest.raises(RequestError, match="multipart/form-data") as caught:
            read_inputs(b"", content_type)
        assert caught.value.status == 415
