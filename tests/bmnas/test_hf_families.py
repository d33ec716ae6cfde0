from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

pytest.importorskip("transformers")

from hf_families import FAMILIES, RATE, hidden_states, prepares, rows_of, save_family
from PIL import Image
from safetensors.torch import save_file

from bmnas.backbones import Backbone, build_backbone, load_backbone, save_backbone
from bmnas.machine.errors import UserError
from bmnas.tasks.hub import absolute, model_folder
from bmnas.tasks.pictures import PROCESSORS, PicturePlan
from bmnas.tasks.rows import read_rows
from bmnas.tasks.task import Array, Modality
from bmnas.tasks.task_file import load_task_file

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def part_of(name: str, folder: Path, features: tuple[str, ...] = ()) -> tuple[Modality, Array]:
    type_ = save_family(name, folder)
    rows = rows_of(type_)
    rate = RATE if type_ == "waveform" else None
    backbone = f"hf:{folder}"
    return Modality("m", type_, rows, backbone=backbone, features=features, sample_rate=rate), rows


def built(name: str, folder: Path, features: tuple[str, ...] = ()) -> tuple[Backbone, Array]:
    part, rows = part_of(name, folder, features)
    return build_backbone(part, classes=3, rows=rows).eval(), rows


def as_feature(state: Tensor, feature: Tensor, bands_first: bool) -> Tensor:
    """Return a hidden state (T, C) or (C, H, W) without special tokens and padding, as features."""
    if state.dim() == 3:
        return state
    if bands_first:
        feature = feature.transpose(1, 2)
    places = feature.flatten(1).shape[1]
    state = state.T[:, -places:] if feature.dim() > 2 else state.T
    if feature.dim() == 2:
        return torch.nn.functional.pad(state, (0, places - state.shape[1]))
    state = state.unflatten(1, feature.shape[1:])
    return state.transpose(1, 2) if bands_first else state


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_are_those_after_the_real_processor(name: str, tmp_path: Path) -> None:
    backbone, rows = built(name, tmp_path)
    with torch.no_grad():
        features = backbone.features(torch.from_numpy(backbone.encode(rows)))
    assert backbone.feature_channels == tuple(feature.shape[1] for feature in features)
    for number, row in enumerate(rows):
        states = hidden_states(name, tmp_path, row)
        layers = len(states) - ("mobilenet" not in name)  # the embeddings come first elsewhere
        for place, batch in enumerate(features, start=1):
            layer = place * layers // len(features)
            feature = batch[number]
            state = states[len(states) - 1 - layers + layer][0]
            expected = as_feature(state, feature, name == "ast")
            found = cosine_similarity(feature.flatten(), expected.flatten(), dim=0)
            assert found > 0.999, (name, place, float(found))


@pytest.mark.parametrize("name", ["clip", "gpt2", "wav2vec2 masked", "whisper", "videomae"])
def test_a_saved_one_needs_its_folder_no_more_and_learns(name: str, tmp_path: Path) -> None:
    backbone, rows = built(name, tmp_path / "model")
    x = torch.from_numpy(backbone.encode(rows))
    with torch.no_grad():
        expected = backbone(x)
    save_backbone(tmp_path / "b", backbone, {})
    again, _ = load_backbone(tmp_path / "b")
    with torch.no_grad():
        assert torch.allclose(again(torch.from_numpy(again.encode(rows))), expected, atol=1e-5)
    # Jointly with a head: every weight that is left has a part in the answer.
    again.train()(x).square().sum().backward()
    idle = [name for name, p in again.named_parameters() if p.grad is None]
    assert len(idle) <= 1, idle  # a mask token or an unused position


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "swin", "wav2vec2 masked"])
def test_layers_that_are_computed_again_have_the_same_gradients(name: str, tmp_path: Path) -> None:
    backbone, rows = built(name, tmp_path)
    x = torch.from_numpy(backbone.encode(rows))
    found = []
    for again in (False, True):
        own, calls = copy.deepcopy(backbone).train(), list[int]()
        if again:
            assert own.checkpoint_gradients()
        for part in own.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        torch.manual_seed(0)
        loss = own(x).square().sum()
        forward = len(calls)
        loss.backward()
        assert (len(calls) > forward) == again
        slopes = [p.grad.flatten() for p in own.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(slopes)))
    (loss, slopes), (same, others) = found
    assert loss == same
    assert torch.allclose(slopes, others, atol=1e-5)


def test_layers_class_token_and_mean_are_chosen(tmp_path: Path) -> None:
    chosen = ("layer2.cls", "layer1", "layer2.mean", "layer2")
    backbone, rows = built("dinov2 registers", tmp_path, chosen)
    with torch.no_grad():
        found = backbone.features(torch.from_numpy(backbone.encode(rows)))
    assert backbone.feature_names == ("layer1", "layer2.cls", "layer2.mean", "layer2")
    state = hidden_states("dinov2 registers", tmp_path, rows[0])[-1][0]
    assert torch.allclose(found[1][0], state[0], atol=1e-3)
    assert torch.allclose(found[2], found[3].mean((2, 3)), atol=1e-6)
    for wrong, why in (("layer3", "layer1 to layer2"), ("2", "layer1 to layer2")):
        with pytest.raises(UserError, match=why):
            built("vit", tmp_path / wrong, (wrong,))
    with pytest.raises(UserError, match=r"has no class token: expected layer2\.mean"):
        built("gpt2", tmp_path / "gpt2", ("layer2.cls",))


@pytest.mark.parametrize("saving", ["shards", "bin"])
def test_shards_and_bin_files_are_read_and_pickles_refused(saving: str, tmp_path: Path) -> None:
    import transformers

    part, rows = part_of("bert", tmp_path)
    whole = build_backbone(part, classes=3, rows=rows).eval()
    network = transformers.AutoModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if saving == "shards":
        network.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    again = build_backbone(part, classes=3, rows=rows).eval()
    x = torch.from_numpy(whole.encode(rows))
    with torch.no_grad():
        for left, right in zip(again.features(x), whole.features(x), strict=True):
            assert torch.equal(left, right)
    if saving == "bin":
        torch.save({"weights": Path("/")}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="cannot be loaded by transformers"):
            build_backbone(part, classes=3, rows=rows)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "clip text"])
def test_vocabularies_without_tokenizer_json(name: str, tmp_path: Path) -> None:
    part, rows = part_of(name, tmp_path)
    expected = build_backbone(part, classes=3, rows=rows).encode(rows)
    file = tmp_path / "tokenizer.json"
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    file.unlink()
    if model["type"] == "BPE":
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    else:
        words = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    found = build_backbone(part, classes=3, rows=rows).encode(rows)
    np.testing.assert_array_equal(found, expected)


def test_a_processor_in_processor_config_is_found(tmp_path: Path) -> None:
    save_family("clip", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    plan = PicturePlan.of_folder(tmp_path)
    content = {"image_processor": json.loads(file.read_text(encoding="utf-8"))}
    (tmp_path / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
    file.unlink()
    assert PicturePlan.of_folder(tmp_path) == plan
    assert (plan.size, plan.keeps, plan.crop) == ((36, 0), True, (32, 32))


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("size", [(20, 31), (90, 75), (53, 71), (30, 20)])
def test_resizing_is_pillows(size: tuple[int, int], resample: int) -> None:
    (picture,) = rows_of("image")[:1]
    plan = PicturePlan(size, False, None, resample, 1.0, (0.0,), (1.0,))
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], resample)).astype(float)
    # Some versions of Pillow begin with the other axis, and round after it.
    assert np.abs(plan.prepared(picture) - expected).mean() < 0.3


def test_a_crop_larger_than_the_picture_is_filled_up(tmp_path: Path) -> None:
    import transformers

    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 21}, crop_size={"height": 30, "width": 24}
    )
    processor.save_pretrained(tmp_path)
    plan, (picture,) = PicturePlan.of_folder(tmp_path), rows_of("image")[:1]
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])[0]
    found = (plan.prepared(picture) - plan.mean) / plan.std
    assert np.abs(np.moveaxis(found, -1, 0) - expected).mean() < 0.01


def test_what_cannot_be_done_alike_is_refused(tmp_path: Path) -> None:
    import transformers

    save_family("vit", tmp_path)
    transformers.LevitImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="LevitImageProcessorPil, which does more"):
        PicturePlan.of_folder(tmp_path)
    part, rows = part_of("wav2vec2", tmp_path / "sound")
    slow = Modality("m", "waveform", rows, backbone=part.backbone, sample_rate=8000)
    with pytest.raises(UserError, match="8000 samples per second, expected 16000"):
        build_backbone(slow, classes=3, rows=rows)


def write_timm(folder: Path, **changes: object) -> None:
    """Write what a folder of timm says of its model."""
    settings = {
        "input_size": [3, 28, 28],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    content = {"architecture": "resnet10t", "num_classes": 5, "num_features": 512}
    content["pretrained_cfg"] = settings | changes
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_pictures_of_timm_are_cut_as_by_torchvision(mode: str, tmp_path: Path) -> None:
    write_timm(tmp_path, crop_mode=mode)
    plan = PicturePlan.of_folder(tmp_path)
    array = np.random.default_rng(0).integers(0, 256, (40, 67, 3), dtype=np.uint8)
    # The shorter side is 28 / .875 = 32, the other one 32 * 67 / 40 rounded down; of 53 pixels a
    # middle of 28 begins at 12.5, rounded to the even 12.
    size, left = ((53, 32), 12) if mode == "center" else ((32, 32), 2)
    resized = Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, 2, left + 28, 30)))
    assert np.abs(255 * plan.prepared(array) - expected).mean() < 0.3
    Image.fromarray(array).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,label\n" + "a.png,x\na.png,y\n" * 3)
    (tmp_path / "task.toml").write_text(
        f'name = "t"\nkind = "multiclass"\ndata = "t.csv"\nlabels = "label"\n'
        "split = {train = 0.4, validation = 0.3, test = 0.3}\n[modality.image]\n"
        f'type = "image"\narray = "image"\nbackbone = "hf:{tmp_path}"\n'
    )
    (row, *_) = load_task_file(tmp_path / "task.toml").modality("image").data[np.array([0])]
    np.testing.assert_array_equal(row, expected)


def test_pictures_of_timm_that_are_prepared_otherwise_are_refused(tmp_path: Path) -> None:
    border: dict[str, object] = {"crop_mode": "border"}
    for changes in (border, {"interpolation": "random"}, {"crop_pct": None}, {"input_size": []}):
        write_timm(tmp_path, **changes)
        with pytest.raises(UserError, match=r"config\.json: .*expected squares in input_size"):
            PicturePlan.of_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_features_of_timm_are_its_own(name: str, tmp_path: Path) -> None:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision without its operators
        pytest.skip(f"needs timm and torchvision: {error}")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    settings = {key: network.pretrained_cfg[key] for key in keys if key in network.pretrained_cfg}
    content = {"architecture": name, "num_classes": 0, "num_features": network.num_features}
    content["pretrained_cfg"] = settings
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    rows = np.random.default_rng(0).integers(0, 256, (2, 250, 311, 3), dtype=np.uint8)
    part = Modality("m", "image", rows, backbone=f"hf:{tmp_path}")
    backbone = build_backbone(part, classes=3, rows=rows)
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    with torch.no_grad():
        found = backbone.features(torch.from_numpy(backbone.encode(rows)))[-1]
        expected = network.forward_features(
            torch.stack([prepare(Image.fromarray(r)) for r in rows])
        )
    if expected.dim() == 3:
        expected = expected[:, network.num_prefix_tokens :].transpose(1, 2)
    elif expected.shape[1] != found.shape[1]:
        expected = expected.permute(0, 3, 1, 2)
    assert cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.999
    save_backbone(tmp_path / "b", backbone, {})
    again, _ = load_backbone(tmp_path / "b")
    with torch.no_grad():
        kept = again.features(torch.from_numpy(again.encode(rows)))[-1]
    assert torch.allclose(kept, found, atol=1e-4)


def test_models_of_timm_and_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_family("vit", tmp_path)
    file = tmp_path / "config.json"
    file.write_text('{"architecture": "resnet18", "pretrained_cfg": {}}', encoding="utf-8")
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    part = Modality("m", "image", rows_of("image"), backbone=f"hf:{tmp_path}")
    with pytest.raises(UserError, match="needs the packages timm and torchvision"):
        build_backbone(part, classes=3, rows=part.data)
    part = Modality("m", "image", rows_of("image"), backbone="timm:vit_tiny")
    with pytest.raises(UserError, match="'hf:timm/vit_tiny' with the name of its weights"):
        build_backbone(part, classes=3, rows=part.data)
    assert absolute("hf:me/model@v1", tmp_path) == "hf:me/model@v1"
    assert absolute(f"hf:{tmp_path.name}", tmp_path.parent) == f"hf:{tmp_path}"
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(
        repo: str, *, local_files_only: bool, revision: str, allow_patterns: list[str]
    ) -> str:
        asked.append((repo, revision, local_files_only))
        if local_files_only:
            raise hub.errors.LocalEntryNotFoundError("not kept")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert model_folder("hf:me/model@v1") == tmp_path
    assert asked[-1] == ("me/model", "v1", False)

    def refuse(repo: str, **options: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("no network\nhere")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="hf download me/model --revision v1 --local-dir") as caught:
        model_folder("hf:me/model@v1")
    assert "\n" not in str(caught.value)


def test_a_length_that_would_not_count_is_told(tmp_path: Path) -> None:
    save_family("siglip text", tmp_path)
    texts = np.array(["a black cat", "no dog"])
    part = Modality("m", "text", texts, backbone=f"hf:{tmp_path}", length=5)
    with pytest.raises(UserError, match=r"received length = 5, .* leave length out"):
        build_backbone(part, classes=2, rows=texts)


def test_a_fetch_that_was_broken_off_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "model-1.safetensors").touch()
    online = []

    def fetch(repo: str, *, local_files_only: bool, **options: object) -> str:
        if not local_files_only:
            online.append(repo)
            (tmp_path / "model-2.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert model_folder("hf:me/model") == tmp_path
    assert online == ["me/model"]
    assert model_folder("hf:me/model") == tmp_path
    assert online == ["me/model"]


def test_grey_pictures_and_floats_are_taken(tmp_path: Path) -> None:
    save_family("clip vision", tmp_path)
    grey = rows_of("image")[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = prepares("clip vision")(
            np.repeat(grey[0][..., None], 3, -1), return_tensors="pt"
        )["pixel_values"]
    for rows in (grey, grey / np.float32(255)):
        part = Modality("m", "image", rows, backbone=f"hf:{tmp_path}")
        backbone = build_backbone(part, classes=3, rows=rows)
        found = backbone.prepare(torch.from_numpy(backbone.encode(rows[:1])))
        assert (found - expected).abs().mean() < 0.01


@pytest.mark.parametrize("name", ["clip", "deit", "vit"])
def test_pictures_by_path_are_made_by_the_real_processor(name: str, tmp_path: Path) -> None:
    save_family(name, tmp_path / "model")
    if name == "vit":  # the size is the network's where the processor says none
        file = tmp_path / "model" / PROCESSORS[0]
        said = json.loads(file.read_text("utf-8"))
        del said["size"]
        file.write_text(json.dumps(said), encoding="utf-8")
    draw, lines = np.random.default_rng(0), ["photo,number,label,part"]
    for number, (height, width) in enumerate([(53, 71), (90, 41), (33, 33), (20, 64)] * 3):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        part = ("train", "validation", "test")[number % 3]
        lines.append(f"{number}.png,{number / 3},{'ab'[number % 2]},{part}")
    (tmp_path / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        'name = "t"\nkind = "multiclass"\ndata = "data.csv"\nlabels = "label"\nsplit = "part"\n'
        '[modality.photo]\narray = "photo"\ntype = "image"\nbackbone = "hf:model"\n'
        '[modality.number]\ncolumns = ["number"]\ntype = "vector"\n',
        encoding="utf-8",
    )
    photo = load_task_file(tmp_path / "task.toml").modality("photo")
    rows = read_rows(photo.data, np.arange(4))
    assert rows.shape == (4, 32, 32, 3)
    backbone = build_backbone(photo, classes=2, rows=rows).eval()
    with torch.no_grad():
        features = backbone.features(torch.from_numpy(backbone.encode(rows)))
    for number in range(4):
        picture = np.asarray(Image.open(tmp_path / f"{number}.png"))
        state = hidden_states(name, tmp_path / "model", picture)[-1][0]
        expected = as_feature(state, features[-1][number], bands_first=False)
        found = cosine_similarity(features[-1][number].flatten(), expected.flatten(), dim=0)
        assert found > 0.9999
    file = tmp_path / "task.toml"
    said = file.read_text("utf-8").replace('type = "image"', 'type = "image"\nfit = "pad"')
    file.write_text(said, encoding="utf-8")
    with pytest.raises(UserError, match="received fit = 'pad' without size"):
        load_task_file(file)
