"""How a pretrained network wants its pictures: where their pixels go, and the scale of colours.

Legend: H height, W width of a picture as it is, H', W' as the network gets it. A plan is plain
data. Resizing is linear for pictures of one size, so it can be two matrices, which run wherever
the network does; their numbers are those of Pillow, whose filters look at all pixels under a
smaller one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from bmnas_serve.media import Placing

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import read_json
from bmnas.tasks.kinds import Array

#: Where save_pretrained writes what prepares inputs.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_DEFAULT_CROP = 224 / 256  # of ConvNeXT, and of timm
_WARPED = 384  # from this size on, ConvNeXT's pictures are not cropped


def _bilinear(x: Array) -> Array:
    weight: Array = np.maximum(0, 1 - np.abs(x))
    return weight


def _bicubic(x: Array) -> Array:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Array) -> Array:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


#: Pillow's filters by their numbers, each with how many pixels it reaches either way.
_FILTERS: dict[int, tuple[Callable[[Array], Array], float]] = {
    1: (_lanczos, 3),
    2: (_bilinear, 1),
    3: (_bicubic, 2),
}

_TIMM_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class PicturePlan(Placing):
    """Resize, cut out the middle, scale: what an image processor of transformers does.

    ``rounds``: after each of the two passes colours are whole numbers, as in Pillow. ``antialias``
    false: filters never reach farther than enlarging takes, as in files of earlier versions. A
    colour from 0 to 255 is multiplied by ``scale``, then ``mean`` is subtracted, then it is divided
    by ``std``.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounds: bool = True
    antialias: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "crop", "mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.resample not in _FILTERS or 0 in self.std or len(self.mean) != len(self.std):
            raise ValueError(
                f"resample {self.resample}, image_mean {self.mean} and image_std {self.std}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON data, from which ``PicturePlan(**…)`` makes it again."""
        return asdict(self)

    @classmethod
    def of_folder(cls, folder: Path, image_size: object = None) -> Self:
        """Read the plan of the processor that lies in ``folder``, as transformers does.

        ``image_size`` is what the network asks for where the processor does not say a size.
        Raises UserError when there is none, or one that does something else.
        """
        files = [folder / name for name in PROCESSORS if (folder / name).is_file()]
        if not files and (timm := timm_settings(folder)) is not None:
            try:
                return cls._of_timm(timm)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise UserError(
                    f"{folder / 'config.json'}: {one_line(error, 200)}, expected squares in "
                    f"input_size, mean, std, crop_pct, crop_mode center or squash, and "
                    f"interpolation {', '.join(_TIMM_FILTERS)}"
                ) from error
        if not files:
            raise UserError(f"{folder}: lacks {' and '.join(PROCESSORS)}, expected one of them")
        content = read_json(files[0])
        if not isinstance(content, dict):
            raise UserError(f"{files[0]}: received a {type(content).__name__}, expected an object")
        content = content.get("image_processor", content)
        try:
            if image_size is not None and not {"size", "crop_size"} & content.keys():
                height, width = _sides(image_size)
                content = {**content, "size": {"height": height, "width": width}}
            processor = _processor(folder, content)
            plan = cls._of_processor(processor, content)
            if not _is_dinov3(content):
                plan._compare(processor)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{files[0]}: {one_line(error, 200)}, expected an image processor that resizes, "
                "cuts out the middle, and has image_mean and image_std"
            ) from error
        return plan

    @classmethod
    def _of_processor(cls, processor: Any, content: Mapping[str, Any]) -> Self:
        size, crop = None, None
        keeps = False
        if processor.do_resize:
            size, keeps = _resizing(processor.size)
        if getattr(processor, "do_center_crop", False):
            crop = _sides(processor.crop_size)
        if type(processor).__name__.startswith("ConvNext") and size is not None:
            side = size[0]
            size, keeps = (side, side), False
            if side < _WARPED:
                share = getattr(processor, "crop_pct", None) or _DEFAULT_CROP
                size, keeps, crop = (int(side / share), 0), True, (side, side)
        colours = len(processor.image_mean)
        normalises = bool(processor.do_normalize)
        return cls(
            size=size,
            keeps=keeps,
            crop=crop,
            resample=int(processor.resample),
            scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
            mean=tuple(map(float, processor.image_mean)) if normalises else (0.0,) * colours,
            std=tuple(map(float, processor.image_std)) if normalises else (1.0,) * colours,
            # It scales colours before it resizes them.
            rounds=not _is_dinov3(content),
        )

    @classmethod
    def _of_timm(cls, settings: Mapping[str, Any]) -> Self:
        """Return the plan of timm's own evaluation, ``transforms_imagenet_eval`` there."""
        mode, share = settings.get("crop_mode", "center"), settings.get("crop_pct", _DEFAULT_CROP)
        _, height, width = settings["input_size"]
        resample = _TIMM_FILTERS.get(found := settings.get("interpolation", "bilinear"))
        if mode not in ("center", "squash") or height != width or resample is None:
            raise ValueError(
                f"received crop_mode {mode!r}, interpolation {found!r}, size {height} x {width}"
            )
        side = math.floor(height / share)
        return cls(
            size=(side, 0) if mode == "center" else (side, side),
            keeps=mode == "center",
            crop=(height, width),
            resample=resample,
            scale=1 / 255,
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            rounded=True,
        )

    def _compare(self, processor: Any) -> None:
        """Raise ValueError where the processor makes something else of a noisy picture."""
        picture = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
        found = np.moveaxis((self.prepared(picture) - self.mean) / self.std, -1, 0)
        expected = expected.reshape(-1, *expected.shape[-3:])[0]
        # Half of 255 levels on average: some versions of Pillow begin with the other axis.
        level = 0.5 * self.scale / min(self.std)
        if found.shape != expected.shape or np.abs(found - expected).mean() > level:
            raise ValueError(f"received a {type(processor).__name__}, which does more")

    def prepared(self, picture: Array) -> Array:
        """Return a picture (H, W, C) of colours from 0 to 255 as (H', W', C), times ``scale``."""
        down, across = self.matrices(*picture.shape[:2])
        x: Array = picture.astype(np.float64)
        for equation, matrix in (("pw,hwc->hpc", across), ("ph,hwc->pwc", down)):
            if matrix is not None:
                x = np.einsum(equation, matrix, x)
                x = np.floor(x + 0.5).clip(0, 255) if self.rounds else x
        return x * self.scale

    def matrices(self, height: int, width: int) -> tuple[Array | None, Array | None]:
        """Return A (H', H) and B (W', W), float64: a picture X becomes A X Bᵀ; None: as it is."""
        resized, output = self.resized(height, width), self.output(height, width)
        down, across = (
            None if before == between == after else self._matrix(before, between, after)
            for before, between, after in zip((height, width), resized, output, strict=True)
        )
        return down, across

    def _matrix(self, before: int, between: int, after: int) -> Array:
        matrix = np.eye(before)
        if between != before:
            reach, support = _FILTERS[self.resample]
            step = before / between
            wide = max(step, 1.0) if self.antialias else 1.0
            centre = (np.arange(between)[:, None] + 0.5) * step
            pixel = np.arange(before)[None]
            first = np.maximum(np.floor(centre - support * wide + 0.5), 0)
            last = np.minimum(np.floor(centre + support * wide + 0.5), before)
            weight = reach((pixel - centre + 0.5) / wide) * ((pixel >= first) & (pixel < last))
            matrix = weight / weight.sum(1, keepdims=True)
        middle = np.zeros((after, before))
        start = self.begin(between, after)
        inside = range(max(0, -start), min(after, between - start))
        middle[inside] = matrix[[place + start for place in inside]]
        return middle


def timm_settings(folder: Path) -> Mapping[str, Any] | None:
    """Return what the folder of a model of timm says of its pictures, None of another one."""
    file = folder / "config.json"
    content = read_json(file) if file.is_file() else None
    found = content.get("pretrained_cfg") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def image_size(folder: Path) -> object:
    """Return what the network in ``folder`` says is the size of its pictures, None without one.

    Raises UserError where its configuration cannot be read.
    """
    if timm_settings(folder) is not None:
        return None
    transformers = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{folder}: its config.json cannot be read by transformers: {one_line(error, 200)}"
        ) from error
    return getattr(getattr(config, "vision_config", config), "image_size", None)


def _processor(folder: Path, content: Mapping[str, Any]) -> Any:
    """Return the image processor of ``folder``, in its form that needs Pillow alone."""
    transformers = importlib.import_module("transformers")
    if _is_dinov3(
        content
    ):  # it has no such form, and ViT's differs in the order of its steps alone
        return transformers.ViTImageProcessorPil(**{"resample": 2, **content})
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder,
            backend="pil",
            local_files_only=True,
            trust_remote_code=False,
            **{key: content[key] for key in ("size",) if key in content},
        )
    except (OSError, ImportError) as error:
        raise ValueError(one_line(error, 200)) from error


def _is_dinov3(content: Mapping[str, Any]) -> bool:
    return str(content.get("image_processor_type", "")).startswith("DINOv3")


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    height, width = size["height"], size["width"]
    if not height or not width:
        raise ValueError(f"size {dict(size)}")
    return int(height), int(width)


def _resizing(size: Any) -> tuple[tuple[int, int], bool]:
    shortest = size.get("shortest_edge") if hasattr(size, "get") else size["shortest_edge"]
    if shortest and not size.get("longest_edge"):
        return (int(shortest), 0), True
    return _sides(size), False
