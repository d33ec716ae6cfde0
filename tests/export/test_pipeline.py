"""Files, the pipeline and the training code are fed the same samples, and say the same."""

from __future__ import annotations

import dataclasses
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from bmnas_export import ExportError, export_bundle, pipeline
from bmnas_export.verify import verify_bundle
from bmnas_serve import manifest as manifests
from bmnas_serve.runner import OnnxRunner
from bmnas_serve.session import Session
from numpy.typing import NDArray
from PIL import Image
from tiny_networks import tiny_network, tiny_task

from bmnas.pipeline.multimodal import MultimodalNetwork, raw_samples
from bmnas.tasks.task import Task

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Made:
    task: Task
    network: MultimodalNetwork
    folder: Path

    def torch_logits(self) -> Array:
        """Return what the training code says of the first three test samples."""
        samples = raw_samples(self.task, self.network, "test")
        with torch.inference_mode():
            return self.network(*samples.batch(torch.arange(3)).inputs).numpy()

    def numbers(self, texts: list[str]) -> Array:
        """Return what a client makes of texts by the manifest, in the way that docs/export.md has.

        Nothing of the training code is used.
        """
        named = {spec.name: spec for spec in manifests.load(self.folder).inputs}
        rule = named["words"].preprocessing
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(rule["tokenizer"]))
        tokenizer.no_padding()
        tokenizer.enable_truncation(rule["length"])
        rows = [tokenizer.encode(text).ids for text in texts]
        return np.array([row + [rule["pad"]] * (rule["length"] - len(row)) for row in rows])

    def run(self, inputs: dict[str, Array]) -> Array:
        return OnnxRunner.open(self.folder / "pipeline.onnx").run(inputs)["logits"]


@pytest.fixture(scope="module", params=["grey", "colour"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    task = tiny_task(("image", "waveform", "text"), names=("photo", "sound", "words"), test=9)
    if request.param == "colour":
        data = np.random.default_rng(1).integers(0, 256, (27, 9, 7, 3), dtype=np.uint8)
        photo = dataclasses.replace(task.modality("photo"), data=data)
        task = dataclasses.replace(task, modalities=(photo, *task.modalities[1:]))
    trained = tiny_network(task, unimodal_logits=True)
    folder = tmp_path_factory.mktemp("pipeline") / "bundle"
    export_bundle(trained, task, folder)
    return Made(task, trained.network, folder)


def from_files(made: Made, folder: Path, *, scale: int = 1, longer: int = 0) -> dict[str, Array]:
    """Write the first three test samples as .png, .wav and .txt; read them as a client would."""
    photos, sounds, texts = [], [], []
    for row in made.task.samples("test")[:3]:
        picture = Image.fromarray(made.task.modality("photo").data[row])
        size = (scale * picture.width, scale * picture.height)
        picture.resize(size, Image.Resampling.NEAREST).save(folder / f"{row}.png")
        with wave.open(str(folder / f"{row}.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(4000)
            sound = made.task.modality("sound").data[row]
            out.writeframes(np.pad(sound, (0, longer)).tobytes())
        with Image.open(folder / f"{row}.png") as image:
            photos.append(np.asarray(image))
        with wave.open(str(folder / f"{row}.wav")) as source:
            sounds.append(np.frombuffer(source.readframes(source.getnframes()), np.int16))
        words = str(made.task.modality("words").data[row])
        # Capitals, one of them wide: lower case and NFKC undo it.
        (folder / f"{row}.txt").write_text(words.upper().replace("A", "\uff21"), "utf-8")
        texts.append((folder / f"{row}.txt").read_text("utf-8"))
    numbers = made.numbers(texts)
    return {"photo": np.stack(photos), "sound": np.stack(sounds), "words": numbers}


# Twice the pixels, each four times: halving them bilinearly gives the picture again.
@pytest.mark.parametrize(("scale", "longer"), [(1, 0), (2, 0), (4, 333)])
def test_files_pipeline_and_training_code_agree(
    made: Made, tmp_path: Path, scale: int, longer: int
) -> None:
    inputs = from_files(made, tmp_path, scale=scale, longer=longer)
    assert inputs["photo"].shape[1:3] == (9 * scale, 7 * scale)
    assert inputs["sound"].shape == (3, 1000 + longer)
    np.testing.assert_allclose(made.run(inputs), made.torch_logits(), atol=1e-5)
    if (scale, longer) == (1, 0):
        answer = Session.open(made.folder).run(inputs)["logits"]
        np.testing.assert_allclose(answer, made.torch_logits(), atol=1e-5)


@pytest.mark.parametrize("size", [(5, 20), (13, 7), (64, 48)])
def test_other_sizes_are_resized_as_torch_does_it(made: Made, size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    colour = made.task.modality("photo").data.shape[3:]
    photo = draw.integers(0, 256, (2, *size, *colour), dtype=np.uint8)
    sound = draw.integers(-3000, 3000, (2, 400), dtype=np.int16)
    pixels = torch.from_numpy(photo).float()
    first = pixels.movedim(-1, 1) if colour else pixels.unsqueeze(1)
    resized = F.interpolate(first, (9, 7), mode="bilinear", align_corners=False).round().byte()
    resized = resized.movedim(1, -1) if colour else resized.squeeze(1)
    padded = torch.from_numpy(np.pad(sound, ((0, 0), (0, 600))))
    words = made.numbers(["a red cat", "purple"])
    with torch.inference_mode():
        expected = made.network(resized, padded, torch.from_numpy(words)).numpy()
    found = made.run({"photo": photo, "sound": sound, "words": words})
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_manifest_says_what_the_pipeline_takes(made: Made) -> None:
    manifest = manifests.load(made.folder)
    colours = list(made.task.modality("photo").data.shape[3:])
    assert manifest.pipeline["photo"]["shape"] == [-1, -1, -1, *colours]
    assert manifest.pipeline["sound"]["shape"] == [-1, -1]
    assert "words" not in manifest.pipeline  # numbers in both files
    assert "pipeline.onnx" in manifest.files
    assert verify_bundle(made.folder).problems == ()


def test_the_pipeline_is_valid_onnx(made: Made) -> None:
    onnx.checker.check_model(made.folder / "pipeline.onnx", full_check=True)


def test_without_images_and_waveforms_there_is_no_pipeline(tmp_path: Path) -> None:
    task = tiny_task(("vector", "tokens"), test=5)
    found = export_bundle(tiny_network(task), task, tmp_path / "out")
    assert not (tmp_path / "out" / "pipeline.onnx").exists()
    assert found.manifest.pipeline == {}


@pytest.mark.parametrize("off", [0.1, float("nan")])
def test_a_pipeline_that_differs_is_an_error(
    made: Made, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    session = Session.open(made.folder)
    rows = made.task.samples("test")[:2]
    arrays = {m.name: m.data[rows] for m in made.task.modalities}
    arrays["words"] = made.numbers([str(text) for text in arrays["words"]])
    pipeline.check_pipeline(made.folder, session, arrays)
    right = OnnxRunner.run
    monkeypatch.setattr(
        pipeline.OnnxRunner,
        "run",
        lambda self, inputs: {
            name: array + (off if self._name == "pipeline" else 0)
            for name, array in right(self, inputs).items()
        },
    )
    with pytest.raises(ExportError, match=r"pipeline\.onnx: differs from model\.onnx by"):
        pipeline.check_pipeline(made.folder, session, arrays)
