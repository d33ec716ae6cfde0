from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bmnas_export.targets
import pytest
from bmnas_export import TARGETS, Bundle, ExportError, engines, export_bundle
from bmnas_export.engines import cache_folder, write_engine
from bmnas_export.targets import ordered
from bmnas_serve.manifest import TargetSpec
from engine_builds import INSTALLED
from onnx import TensorProto, helper, save
from tiny_networks import tiny_network, tiny_task

from bmnas.machine.errors import UserError
from bmnas.tasks import load_task

needs_rtx = pytest.mark.skipif(not INSTALLED, reason="needs the extra trt-rtx")
PACKS = Path(os.environ.get("BMNAS_DATA", "nowhere"))

#: What TensorRT 10.16 and 11 have in common and what is called of it; calls are noted in a file.
FAKE = """
import enum, json, os, pathlib, signal

__version__ = os.environ["FAKE_VERSION"]
if os.environ.get("FAKE_FAULT") == "import":
    raise ImportError("no driver")
NOTES = pathlib.Path(os.environ["FAKE_NOTES"])

def note(*call):
    with NOTES.open("a") as file:
        file.write(json.dumps(call) + "\\n")

class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1 if __version__.startswith("10") else 0

class BuilderFlag(enum.IntEnum):
    TF32 = 7

class DataType(enum.Enum):
    FLOAT = 0
    INT32 = 3

class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)
    def __init__(self): pass

class Tensor:
    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype = name, shape, dtype

class Network:
    num_layers, num_inputs, num_outputs = 7, 1, 1
    def get_input(self, i): return Tensor("sound", (-1, 4), DataType.INT32)
    def get_output(self, i): return Tensor("logits", (-1, 3), DataType.FLOAT)

class Profile:
    def set_shape(self, name, smallest, usual, largest):
        note("profile", name, smallest, usual, largest)

class Cache:
    def __init__(self, content): self.content = content
    def serialize(self): return self.content + b"+"

class Config:
    def add_optimization_profile(self, profile): note("add profile")
    def clear_flag(self, flag): note("without", flag.name)
    def create_timing_cache(self, content):
        note("timings", content.decode())
        return Cache(content)
    def set_timing_cache(self, cache, ignore_mismatch): note("set timings", ignore_mismatch)

class Builder:
    def __init__(self, logger): self.logger = logger
    def create_network(self, flags):
        note("network", flags)
        return Network()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        if os.environ.get("FAKE_FAULT") == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if os.environ.get("FAKE_FAULT") == "none":
            self.logger.log(ILogger.WARNING, "it is late")
            self.logger.log(ILogger.ERROR, "no\\nmemory")
            return None
        return b"an engine"

class Error:
    def __str__(self): return "no such layer"

class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def get_error(self, i): return Error()
    def parse(self, content):
        note("parse", len(content))
        return os.environ.get("FAKE_FAULT") != "parse"

class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, content):
        note("check", content.decode())
        return None if os.environ.get("FAKE_FAULT") == "stale" else object()
"""


class Fake:
    """The recorded TensorRT, an nvidia-smi, and an ONNX file with an input of int16."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        (folder / "lib").mkdir()
        (folder / "lib" / "tensorrt.py").write_text(FAKE)
        patch.syspath_prepend(folder / "lib")
        (folder / "bin").mkdir()
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("FAKE_NOTES", str(folder / "notes"))
        self.version("11.0.0")
        self.gpu("NVIDIA Test, 9.0, 580.1")
        ends = (
            helper.make_tensor_value_info("sound", TensorProto.INT16, ["batch", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
        )
        nodes = [helper.make_node("Cast", ["sound"], ["logits"], to=TensorProto.FLOAT)]
        self.model = folder / "model.onnx"
        save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), self.model)

    def version(self, version: str) -> None:
        self.patch.setenv("FAKE_VERSION", version)

    def gpu(self, line: str) -> None:
        program = self.folder / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o755)

    def build(self) -> TargetSpec:
        return write_engine("tensorrt", self.folder / "model.trt.engine", self.model, None)

    def calls(self) -> list[list[Any]]:
        """Return what was called since the last time."""
        notes = self.folder / "notes"
        found = [json.loads(line) for line in notes.read_text().splitlines()]
        notes.unlink()
        return found


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    yield Fake(tmp_path, monkeypatch)
    sys.modules.pop("tensorrt", None)


@pytest.mark.parametrize(("version", "flag"), [("10.16.0", 2), ("11.0.0", 1)])
def test_an_engine_is_strongly_typed_and_has_a_profile(fake: Fake, version: str, flag: int) -> None:
    fake.version(version)
    spec = fake.build()
    calls = fake.calls()
    assert [call for call in calls if call[0] != "parse"] == [
        ["network", flag],
        ["without", "TF32"],
        ["profile", "sound", [1, 4], [8, 4], [64, 4]],
        ["add profile"],
        ["timings", ""],
        ["set timings", False],
    ]
    assert (fake.folder / spec.file).read_bytes() == b"an engine"
    assert spec.precision == "float32"
    assert spec.producer["tensorrt"] == version
    assert spec.dtypes == {"sound": "int32"}
    assert spec.measured["inputs"] == {"sound": {"shape": [-1, 4], "dtype": "int32"}}
    assert spec.measured["batches"] == [1, 8, 64]
    assert "model.onnx" in spec.measured["verified"]


def test_an_engine_for_all_the_same_comes_from_the_cache(fake: Fake) -> None:
    first = fake.build()
    fake.calls()
    again = fake.build()
    assert fake.calls() == [["check", "an engine"]]
    assert again.measured == {**first.measured, "cached": True}
    [note] = cache_folder().glob("*.json")
    assert json.loads(note.read_text())["key"]["gpu"] == "NVIDIA Test, 9.0, 580.1"


@pytest.mark.parametrize(
    "change", ["version", "gpu", "model", "batches", "stale", "note", "damaged"]
)
def test_anything_else_is_built_anew(
    fake: Fake, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.build()
    fake.calls()
    if change == "version":
        fake.version("11.0.1")
    elif change == "gpu":
        fake.gpu("NVIDIA Test, 9.0, 580.2")
    elif change == "model":
        fake.model.write_bytes(
            fake.model.read_bytes()
            + helper.make_model(helper.make_graph([], "other", [], [])).SerializeToString()
        )
    elif change == "batches":
        monkeypatch.setattr(engines, "BATCHES", (1, 8, 32))
    elif change == "stale":
        monkeypatch.setenv("FAKE_FAULT", "stale")
    elif change == "note":
        [note] = cache_folder().glob("*.json")
        note.write_text('{"engine": ')
    else:
        [engine] = cache_folder().glob("*.engine")
        engine.write_bytes(b"an engin")
    spec = fake.build()
    assert "cached" not in spec.measured
    # Measurements hold for the same version on the same GPU.
    known = "" if change in ("version", "gpu") else "+"
    assert ["timings", known] in fake.calls()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("parse", "tensorrt 11.0.0: it cannot read the graph; no such layer$"),
        ("none", "tensorrt 11.0.0: it built no engine; no memory$"),
        ("crash", "tensorrt ended with SIGSEGV: it said nothing"),
        ("import", "tensorrt ended with an exception: ImportError: no driver"),
    ],
)
def test_what_goes_wrong_is_one_line(
    fake: Fake, fault: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", fault)
    with pytest.raises(ExportError, match=expected) as caught:
        fake.build()
    assert "\n" not in str(caught.value)
    assert not list(cache_folder().glob("*"))


def test_without_a_gpu_tensorrt_is_not_begun(fake: Fake) -> None:
    (fake.folder / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(ExportError, match=r"nvidia-smi finds none: .*; tensorrt-rtx builds"):
        fake.build()


def test_triton_gets_the_engine_and_its_types(fake: Fake, tmp_path: Path) -> None:
    task = tiny_task(("vector", "waveform"), names=("numbers", "sound"), test=5)
    bundle = export_bundle(
        tiny_network(task), task, tmp_path / "bundle", targets=["triton", "tensorrt"]
    )
    assert list(bundle.manifest.targets) == ["tensorrt", "triton"]
    folder = bundle.folder / "triton" / "tiny-tensorrt"
    assert (folder / "1" / "model.plan").read_bytes() == b"an engine"
    config = (folder / "config.pbtxt").read_text()
    assert 'name: "sound" data_type: TYPE_INT32 dims: [1000]' in config
    assert (folder / "warmup" / "1").stat().st_size == 4000


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tensorrt", "needs the package tensorrt, .*: run pip install tensorrt"),
        ("tensorrt-int8", "needs the package tensorrt, "),
        ("tensorrt-rtx", r"the package tensorrt_rtx, .*: run pip install 'bmnas\[trt-rtx\]'"),
    ],
)
def test_a_missing_package_is_told_with_its_command(
    target: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=expected):
        ordered([target])


def test_what_an_engine_is_made_from_is_made_first() -> None:
    assert {name: TARGETS[name].source for name in TARGETS if name.startswith("tensorrt")} == {
        f"{package}{bits}": source
        for package in ("tensorrt-rtx", "tensorrt")
        for bits, source in (("", "onnx"), ("-fp16", "onnx-fp16"), ("-int8", "onnx-int8-trt"))
    }


RTX = ("tensorrt-rtx", "tensorrt-rtx-fp16", "tensorrt-rtx-int8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    task = tiny_task(("image", "waveform"), names=("photo", "sound"), test=5)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bmnas_export.targets, "_INT8_POINTS", 50)
        return export_bundle(tiny_network(task), task, folder, targets=RTX)


@needs_rtx
@pytest.mark.parametrize("target", RTX)
def test_tensorrt_rtx_builds_what_is_exported(made: Bundle, target: str) -> None:
    spec = made.manifest.targets[target]
    assert (made.folder / spec.file).stat().st_size > 10_000
    assert spec.dtypes == {"sound": "int32"}
    assert spec.measured["inputs"]["sound"] == {"shape": [-1, 1000], "dtype": "int32"}
    assert spec.measured["outputs"]["logits"] == {"shape": [-1, 3], "dtype": "float"}
    assert spec.precision == {"": "float32", "-fp16": "float16", "-int8": "int8"}[target[12:]]
    assert spec.producer["tensorrt_rtx"]
    assert list(made.manifest.targets) == [
        "tensorrt-rtx",
        "onnx-fp16",
        "tensorrt-rtx-fp16",
        "onnx-int8-trt",
        "tensorrt-rtx-int8",
    ]


@needs_rtx
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("digits", None),
        ("examples.av_digits:load_speaker", "av-digits"),
        ("examples/easy-vqa.toml", "easy-vqa"),
        ("examples/icon-tags.toml", "icon-tags"),
    ],
)
def test_tensorrt_rtx_builds_the_named_tasks(
    name: str, pack: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.pluginmanager.hasplugin("engine_builds"):
        pytest.skip("takes a minute: `make engines` runs it")
    folder = None if pack is None else PACKS / pack
    if folder is not None and not folder.is_dir():
        pytest.skip(f"BMNAS_DATA names no folder with {pack}")
    task = load_task(name, folder)
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is trained: scores are chance.
        patch.setattr(bmnas_export.targets, "_FLOAT16_POINTS", 100)
        patch.setattr(bmnas_export.targets, "_INT8_POINTS", 100)
        network = tiny_network(task, unimodal_logits=True)
        bundle = export_bundle(network, task, tmp_path / "bundle", targets=RTX)
    assert set(RTX) <= set(bundle.manifest.targets)


@needs_rtx
def test_tensorrt_rtx_tells_what_it_does_not_take(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Nothing", ["x"], ["y"])], "g", ends[:1], ends[1:])
    save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"^tensorrt_rtx .*: it cannot read the graph; .*Nothing"):
        write_engine("tensorrt_rtx", tmp_path / "engine", tmp_path / "model.onnx", None)
