"""Windows of an image and regions of a detector: boxes, what is averaged over them, padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bmnas.backbones import backbone_from_spec, build_backbone
from bmnas.backbones.regions import WindowsBackbone, shares, windows
from bmnas.machine.errors import UserError
from bmnas.tasks import Modality
from bmnas.tasks.regions import load_regions


def built(modality: Modality) -> WindowsBackbone:
    backbone = build_backbone(modality, classes=3, rows=np.asarray(modality.data))
    assert isinstance(backbone, WindowsBackbone)
    return backbone.eval()


def images(*shape: int) -> Modality:
    data = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    return Modality("image", "image", data, backbone="windows")


def test_windows_are_cells_at_half_their_distance() -> None:
    found = windows(64, 32, (2, 4))
    assert found[:9].tolist() == [[x, y, x + 15, y + 31] for y in (0, 16, 32) for x in (0, 8, 16)]
    assert len(found) == 9 + 49
    assert found[-1].tolist() == [24, 48, 31, 63]


@pytest.mark.parametrize("cells", [(8, 8), (3, 5), (1, 1)])
def test_a_window_averages_the_pixels_in_it(cells: tuple[int, int]) -> None:
    """On a map that is constant in each cell, as every pixel would see it."""
    image = (24, 40)
    boxes = windows(*image, (2, 3, 4)).round()  # whole pixels
    values = np.random.default_rng(0).normal(size=cells)
    scale = 15  # each pixel in 15 parts a side: cells end inside of pixels
    fine = values[(np.arange(image[0] * scale) * cells[0]) // (image[0] * scale)][
        :, (np.arange(image[1] * scale) * cells[1]) // (image[1] * scale)
    ]
    for box, cover in zip(boxes.astype(int), shares(boxes, image, cells).T, strict=True):
        x1, y1, x2, y2 = box
        inside = fine[y1 * scale : (y2 + 1) * scale, x1 * scale : (x2 + 1) * scale]
        assert cover @ values.ravel() == pytest.approx(inside.mean())


def test_its_feature_is_every_map_and_the_boxes() -> None:
    modality = images(64, 64, 3)
    backbone = built(modality)
    x = torch.from_numpy(modality.data)
    (regions,) = backbone.features(x)
    assert regions.shape == (5, 32 + 64 + 96 + 4, 83)
    assert backbone.feature_names == ("regions",)
    assert backbone.feature_channels == (196,)
    boxes = regions[:, -4:].transpose(1, 2)
    assert torch.equal(
        boxes[3].double(), torch.from_numpy(windows(64, 64, (2, 3, 4))).float().double()
    )
    # What is in a window changes what it says; the middle of the first map's window, by hand.
    maps = backbone.stages[0](backbone.stem(x))
    assert torch.allclose(regions[:, :32, 0], maps[:, :, :8, :8].mean((2, 3)), atol=1e-5)


def test_it_comes_back_from_its_description_without_its_constants() -> None:
    backbone = built(images(40, 24))
    x = torch.from_numpy(images(40, 24).data)
    again = backbone_from_spec(json.loads(json.dumps(backbone.spec())))
    again.load_state_dict(backbone.state_dict())
    assert not [name for name in backbone.state_dict() if "boxes" in name or "cover" in name]
    torch.testing.assert_close(again.eval()(x), backbone(x))
    whole = backbone.features(x)[0]
    backbone.truncate(1)
    torch.testing.assert_close(backbone.features(x)[0], whole)
    cut = backbone_from_spec(backbone.spec())
    cut.load_state_dict(backbone.state_dict())
    assert cut.head is None


def detected() -> Modality:
    """Three images of two regions at most; the second one has one."""
    rows = np.random.default_rng(0).normal(size=(3, 2, 9)).astype(np.float32)
    rows[..., 5:] = [[1, 2, 8, 9], [0, 0, 3, 30]]
    rows[1, 1] = 0
    return Modality("image", "regions", rows)


def test_regions_are_as_they_are_and_padding_counts_for_nothing() -> None:
    modality = detected()
    backbone = build_backbone(modality, classes=3, rows=np.asarray(modality.data)).eval()
    x = torch.from_numpy(np.asarray(modality.data))
    (feature,) = backbone.features(x)
    assert torch.equal(feature, x.transpose(1, 2))
    assert backbone.feature_names == ("regions",)
    mask = backbone.mask(x)
    assert mask is not None
    assert mask.tolist() == [[True, True], [True, False], [True, True]]
    longer = torch.cat([x, torch.zeros(3, 4, 9)], dim=1)
    assert backbone.head is not None
    torch.testing.assert_close(backbone.head(longer.transpose(1, 2)), backbone(x))


def write(path: Path, regions: int, draw: np.random.Generator, **changed: object) -> np.ndarray:
    x, boxes = draw.normal(size=(6, regions)).astype(np.float32), draw.uniform(0, 50, (regions, 4))
    boxes[:, 2:] += boxes[:, :2]
    content = {"x": x, "bbox": boxes.astype(np.float32), "image_h": 480, "image_w": 640}
    np.savez(path, **{**content, **changed})  # type: ignore[arg-type]
    return np.concatenate([x.T, boxes], axis=1).astype(np.float32)


def test_the_files_of_a_detector_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = (write(tmp_path / f"{name}.npz", n, draw) for name, n in (("a", 3), ("b", 7)))
    rows = load_regions(tmp_path, ["b.npz", "a.npz"], most=5)
    assert rows.shape == (2, 5, 10)
    found = rows[np.array([1, 0, 1])]
    assert np.array_equal(found[0, :3], first)
    assert not found[0, 3:].any()
    assert np.array_equal(found[1], second[:5])
    with pytest.raises(UserError, match=r"c\.npz: no such file"):
        load_regions(tmp_path, ["c.npz"], most=5)
    write(tmp_path / "d.npz", 3, draw, bbox=np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"d\.npz: received x \(6, 3\) and bbox \(2, 4\), expected"):
        load_regions(tmp_path, ["a.npz", "d.npz"], most=5)[np.array([1])]
