"""The published schema of the manifest, beside the code that reads it."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from bmnas_serve import manifest
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.manifest import InputSpec, TaskSpec, TensorSpec
from tiny_bundles import classifier_manifest

SCHEMA = json.loads((files("bmnas_serve") / "manifest.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def content(**changes: Any) -> dict[str, Any]:
    """Return a manifest as it is in its file."""
    return json.loads(json.dumps({**classifier_manifest().to_file(), **changes}))


def test_the_schema_has_the_members_of_the_code() -> None:
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["properties"]["format"] == {"const": manifest.FORMAT}
    assert SCHEMA["properties"].keys() == manifest._REQUIRED.keys() | manifest._OPTIONAL.keys()
    assert set(SCHEMA["required"]) == {*manifest._REQUIRED, "sha256"}
    assert set(SCHEMA["$defs"]["dtype"]["enum"]) == PROTOCOL.keys()
    decisions = SCHEMA["properties"]["task"]["properties"]["decision"]["enum"]
    assert decisions == list(manifest.DECISIONS)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (TaskSpec, SCHEMA["properties"]["task"]),
        (InputSpec, SCHEMA["properties"]["inputs"]["items"]),
        (TensorSpec, SCHEMA["properties"]["outputs"]["items"]),
    ],
)
def test_parts_have_the_fields_of_the_code(kind: Any, place: dict[str, Any]) -> None:
    assert place["properties"].keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("span", [None, (0, 16), (-1.5, 2.0)])
def test_a_manifest_is_valid(span: Any) -> None:
    spec = dataclasses.replace(classifier_manifest().inputs[0], range=span)
    made = dataclasses.replace(classifier_manifest(), inputs=(spec,))
    VALIDATOR.validate(json.loads(json.dumps(made.to_file())))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "bmnas.bundle/1"},
        {"name": "a/b"},
        {"task": {"name": "a", "kind": "b", "decision": "most"}},
        {"inputs": []},
        {"inputs": [{"name": "a", "shape": [2, 3], "dtype": "uint8"}]},
        {"inputs": [{"name": "a", "shape": [-1, 0], "dtype": "uint8"}]},
        {"inputs": [{"name": "a", "shape": [-1], "dtype": "bfloat16"}]},
        {"inputs": [{"name": "a", "shape": [-1], "dtype": "uint8", "range": [1]}]},
        {"outputs": [{"name": "a", "shape": [-1], "dtype": "uint8", "range": None}]},
        {"class_names": ["a", "a"]},
        {"threshold": 1.5},
        {"genotype": []},
        {"files": {}},
        {"files": {"model.onnx": "12"}},
        {"files": {"model.onnx": "0" * 64, "../x": "0" * 64}},
        {"sha256": {"name": 3}},
        {"extra": 1},
    ],
)
def test_what_the_code_refuses_the_schema_refuses(changes: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(content(**changes))
