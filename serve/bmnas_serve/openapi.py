"""The OpenAPI 3.1 document of a server, built from the models that it serves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.manifest import TensorSpec
from bmnas_serve.metadata import server_metadata
from bmnas_serve.repository import Served

Schema = dict[str, Any]

_FILES = {
    "image": "image/png, image/jpeg, image/webp, image/gif, image/bmp, image/tiff",
    "sound": "audio/wav, audio/flac, audio/ogg, audio/mpeg, application/octet-stream",
    "video": "video/mp4, video/webm, video/quicktime, application/octet-stream",
    "text": "text/plain",
    "fields": "application/json",
    "numbers": "application/json",
}
_STATUS = {
    200: "The answer.",
    400: "The request is malformed.",
    404: "There is no such model, version, sample or file.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is of a type that is not read here.",
    422: "A part cannot become an input of the model.",
    500: "The model fails on these numbers.",
    501: "A package that decodes such a part is not installed on the server.",
    503: "The server has enough to do, or is stopping; Retry-After says when to come again.",
    504: "There was no answer within the timeout of the request.",
}
_BODY = (400, 404, 408, 413, 415, 503)
_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_OBJECT: Schema = {"type": "object"}
_BOOLEAN: Schema = {"type": "boolean"}


def document(
    served: Sequence[Served], cards: Mapping[str, Any], routes: Mapping[str, set[str]]
) -> Schema:
    """Return the document of the paths in ``routes``, each with its methods.

    ``cards`` are those of the models that take what people have, by name.
    """
    known = dict(_operations(served, cards))
    paths: dict[str, Schema] = {}
    for path, methods in routes.items():
        plain = path.replace(":path}", "}")
        for method in sorted(methods - {"HEAD"}):
            if (plain, method) in known:
                paths.setdefault(plain, {})[method.lower()] = known[plain, method]
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "bmnas",
            "version": server_metadata()["version"],
            "description": "Predictions from what people have (/v1), and the Open Inference"
            " Protocol v2 (/v2).",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _object({"error": _TEXT})}},
    }


def _operations(
    served: Sequence[Served], cards: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], Schema]]:
    """Yield path, method and operation of all that the server may answer."""
    names = list(dict.fromkeys(one.name for one in served))
    name = _parameter("name", "path", {"enum": names} if names else _TEXT)
    version = _parameter("version", "path", {"enum": sorted({one.version for one in served})})
    yield (("/v1/predict", "POST"), _predict(names, cards))
    yield from _people(name)
    yield from _server()
    live = _object({"live": {"type": "boolean"}})
    yield ("/v2/health/live", "GET"), _operation("Whether the process runs.", live)
    ready = _object({"ready": {"type": "boolean"}, "name": _TEXT}, "ready")
    yield ("/v2/health/ready", "GET"), _operation("Whether requests are welcome.", ready, 503)
    infer = {
        "description": "Tensors as JSON; with the header Inference-Header-Content-Length the JSON"
        " is followed by the bytes of tensors.",
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": [_infer(one) for one in served]}}},
    }
    for model, parameters in (
        ("/v2/models/{name}", [name]),
        ("/v2/models/{name}/versions/{version}", [name, version]),
    ):
        said = _operation("What a model takes and gives.", _model(), 404)
        yield (model, "GET"), {**said, "parameters": parameters}
        said = _operation("Whether a model takes requests.", ready, 404, 503)
        yield (f"{model}/ready", "GET"), {**said, "parameters": parameters}
        said = _operation("A request of zeros.", _object({"inputs": _list(_OBJECT)}), 404)
        yield (f"{model}/example.json", "GET"), {**said, "parameters": parameters}
        said = _operation("The outputs for tensors.", _inferred(), *_BODY, 500, 504)
        # Not a property of the schema: tools that make requests of it would take 504 for a fault.
        said["description"] = (
            "The parameter timeout, in microseconds, says how long the answer may take."
        )
        said["responses"]["200"]["content"]["application/octet-stream"] = {}
        yield (
            (f"{model}/infer", "POST"),
            {**said, "parameters": parameters, "requestBody": infer},
        )
        for end, what in (("config", "How a model is run."), ("stats", "What was served.")):
            yield (
                (f"{model}/{end}", "GET"),
                {**_operation(what, _OBJECT, 404), "parameters": parameters},
            )


def _server() -> Iterator[tuple[tuple[str, str], Schema]]:
    server = _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)})
    yield ("/v2", "GET"), _operation("Name and version of the server.", server)
    yield ("/v2/models/stats", "GET"), _operation("What was served of all models.", _OBJECT)
    index = _operation("The models that are or could be served.", _list(_OBJECT), *_BODY)
    body = _body({"ready": _BOOLEAN})
    yield ("/v2/repository/index", "POST"), {**index, "requestBody": body}
    body = _body({"parameters": _optional({"unload_dependents": _BOOLEAN})})
    anyone = _parameter("name", "path", _TEXT)
    for verb in ("load", "unload"):
        said = _operation(f"{verb.capitalize()} a model.", _OBJECT, *_BODY, 403)
        path = f"/v2/repository/models/{{name}}/{verb}"
        yield (path, "POST"), {**said, "parameters": [anyone], "requestBody": body}


def _closed(properties: Schema) -> Schema:
    """Return an object of these properties, each of which may be left out, and of no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _optional(properties: Schema) -> Schema:
    """Return an object as ``_closed`` does, in whose place null may stand."""
    return {**_closed(properties), "type": ["object", "null"]}


def _given(properties: Schema, *required: str) -> Schema:
    """Return an object that a client sends: nothing but these properties."""
    return {**_object(properties, *required), "additionalProperties": False}


def _body(properties: Schema) -> Schema:
    return {"content": {"application/json": {"schema": _closed(properties)}}}


def _people(name: Schema) -> Iterator[tuple[tuple[str, str], Schema]]:
    """Yield what the page asks for."""
    version = _parameter("version", "query", _TEXT)
    one = _object({"name": _TEXT, "version": _TEXT})
    models = _object({"models": _list(one)})
    yield ("/v1/models", "GET"), _operation("The models that are served.", models)
    fields = {"name": _TEXT, "version": _TEXT, "classes": _list(_TEXT), "inputs": _list(_OBJECT)}
    card = _operation("What people want to know of a model.", _object(fields), *_RAW)
    yield ("/v1/models/{name}", "GET"), {**card, "parameters": [name, version]}
    drawing = _operation("The drawing of the architecture.", None, *_RAW)
    drawing["responses"]["200"]["content"] = {"image/svg+xml": {}}
    path = "/v1/models/{name}/architecture.svg"
    yield (path, "GET"), {**drawing, "parameters": [name, version]}
    sample = _operation("An input of a test sample of the bundle.", None, *_RAW)
    kinds = ("image/png", "audio/wav", "text/plain", "application/json")
    sample["responses"]["200"]["content"] = {kind: {} for kind in kinds}
    at = [_parameter("sample", "path", _COUNT), _parameter("input", "path", _TEXT)]
    path = "/v1/models/{name}/samples/{sample}/{input}"
    yield (path, "GET"), {**sample, "parameters": [name, *at, version]}


_RAW = (400, 404, 422, 501, 503)


def _predict(names: Sequence[str], cards: Mapping[str, Any]) -> Schema:
    number = {"type": "number"}
    answer = {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "labels": _list(_TEXT),
        "probabilities": {"type": "object", "additionalProperties": number},
        "threshold": number,
        "numbers": {"type": "object", "additionalProperties": number},
        "outputs": _OBJECT,
        "left_out": _list(_TEXT),
        "importance": {"type": "object", "additionalProperties": number},
        "milliseconds": {"type": "object", "additionalProperties": number},
    }
    required = ("model_name", "model_version", "left_out", "milliseconds")
    said = _operation(
        "What a model says of pictures, sounds, texts and numbers as people have them.",
        _object(answer, *required),
        *_BODY,
        422,
        500,
        501,
        504,
    )
    model = {"enum": list(names)} if names else _TEXT
    return {
        **said,
        "description": "A part for each input. For one that is left out stands what the network"
        " has learned for it, an empty text, or the mean of the bundle's samples. A list of numbers"
        " is the input itself, as the network gets it.",
        "parameters": [
            _parameter("model", "query", model, required=len(names) > 1),
            _parameter("version", "query", _TEXT),
            {
                **_parameter("sample", "query", _COUNT),
                "description": "The test sample of the bundle whose inputs stand for those that"
                " are not given.",
            },
            {
                **_parameter("without", "query", _list(_TEXT)),
                "description": "Inputs that are left out, also of the sample.",
            },
            {
                **_parameter("explain", "query", _BOOLEAN),
                "description": "Also say how much less the model says without each input.",
            },
        ],
        "requestBody": {
            "content": {
                "multipart/form-data": {
                    "schema": {"anyOf": [_form(card) for card in cards.values()] or [_OBJECT]},
                    "encoding": {
                        one["name"]: {"contentType": _FILES[one["kind"]]}
                        for card in cards.values()
                        for one in card["inputs"]
                    },
                },
                "application/json": {
                    "schema": {"anyOf": [_json(card) for card in cards.values()] or [_OBJECT]}
                },
            }
        },
    }


def _form(card: Mapping[str, Any]) -> Schema:
    parts = {one["name"]: _part(one) for one in card["inputs"]}
    needed = [one["name"] for one in card["inputs"] if not one["optional"]]
    return {
        "type": "object",
        "properties": parts,
        "required": needed,
        "minProperties": 1,
        "additionalProperties": False,
    }


def _part(one: Mapping[str, Any]) -> Schema:
    about = f"{one['expected']}; {one['meaning']}" if one["meaning"] else one["expected"]
    if one["kind"] == "text":
        return {"type": "string", "description": about}
    if one["kind"] == "fields":
        return {**_fields(one), "description": about}
    if one["kind"] == "numbers":
        return {**_nested(one["shape"]), "description": about}
    return {"type": "string", "format": "binary", "description": about}


def _fields(one: Mapping[str, Any]) -> Schema:
    properties = {
        field["name"]: {"type": ["string", "null"], "examples": field["choices"]}
        if "choices" in field
        else {"type": ["number", "null"]}
        for field in one["fields"]
    }
    return _closed(properties)


def _json(card: Mapping[str, Any]) -> Schema:
    form = _form(card)
    encoded = {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]{2,}=*$"}
    for one in card["inputs"]:
        if one["kind"] in ("image", "sound", "video"):
            form["properties"][one["name"]] = {
                **_given({"base64": encoded}),
                "description": one["expected"],
            }
    return _given({"inputs": form})


def _nested(shape: Sequence[int]) -> Schema:
    schema: Schema = {"type": "number"}
    for length in reversed(shape):
        schema = {"type": "array", "items": schema, "minItems": length, "maxItems": length}
    return schema


def _infer(served: Served) -> Schema:
    specs = served.session.inputs
    inputs = [_tensor(spec) for spec in specs]
    tensors = {"type": "array", "prefixItems": inputs, "items": False, "minItems": len(inputs)}
    if optional := sum(spec.optional for spec in specs):
        least = max(len(specs) - optional, 1)
        tensors = {"type": "array", "items": {"anyOf": inputs}, "minItems": least}
    output = {"enum": [spec.name for spec in served.session.outputs]}
    told = _optional({"classification": _COUNT, "binary_data": _BOOLEAN})
    wanted = _given({"name": output, "parameters": told}, "name")
    asked = {
        "id": {"type": ["string", "null"]},
        "inputs": tensors,
        "outputs": {"type": ["array", "null"], "items": wanted},
        "parameters": _optional({"binary_data_output": _BOOLEAN}),
    }
    return _given(asked, "inputs")


def _tensor(spec: TensorSpec) -> Schema:
    kind = np.dtype(spec.dtype).kind
    item: Schema = {"type": {"b": "boolean", "i": "integer", "u": "integer"}.get(kind, "number")}
    if kind in "iu":
        bounds = np.iinfo(spec.dtype)
        item |= {"minimum": int(bounds.min), "maximum": int(bounds.max)}
    axes = [
        {"const": axis} if axis != -1 else {"type": "integer", "minimum": 1} for axis in spec.shape
    ]
    required: Schema = {
        "name": {"const": spec.name},
        "datatype": {"const": PROTOCOL[spec.dtype]},
        "shape": {"type": "array", "prefixItems": axes, "items": False, "minItems": len(axes)},
        "data": {**_list(item), "minItems": math.prod(a for a in spec.shape if a != -1)},
    }
    return _given({**required, "parameters": _optional({})}, *required)


def _inferred() -> Schema:
    tensor = {"name": _TEXT, "datatype": _TEXT, "shape": _list(_COUNT), "data": _list({})}
    outputs = _list(_object(tensor, "name", "datatype", "shape"))
    named = {"id": _TEXT, "model_name": _TEXT, "model_version": _TEXT, "outputs": outputs}
    return _object(named, "model_name", "outputs")


def _model() -> Schema:
    tensor = _object({"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"})})
    tensors = {"inputs": _list(tensor), "outputs": _list(tensor)}
    named = {"name": _TEXT, "platform": _TEXT, "versions": _list(_TEXT)}
    return _object({**named, **tensors})


def _operation(summary: str, schema: Schema | None, *statuses: int) -> Schema:
    """Return an operation that answers 200 with ``schema``, and errors with ``statuses``."""
    answered = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
    responses = {"200": {"description": _STATUS[200], **answered}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status in sorted({*statuses}):
        told = _STATUS.get(status, "It is not allowed here.")
        responses[str(status)] = {"description": told, "content": error}
    return {"summary": summary, "responses": responses}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _parameter(name: str, place: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": place, "required": required or place == "path", "schema": schema}
