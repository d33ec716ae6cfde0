"""The feature cache: what frozen backbones say of every sample, once, on disk.

Legend: L length, T tokens, C_raw channels of a raw feature. Features are kept in the ``Reading``
that a network wants: pooled to (rows, L, C_raw), or as tokens (rows, T, C_raw) with masks
(rows, T). Neither has weights (spec section 1), so what frozen backbones give is a constant of the
sample. An entry of the cache holds one modality's features of the rows that some parts use: a
``.npy`` file per feature, another for its mask where there is one, and a manifest with their
shapes and checksums; media that several samples share are stored once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmnas.backbones.base import Backbone
from bmnas.features.array_file import ArrayWriter, checksum_of
from bmnas.features.dtype import file_dtype, to_file
from bmnas.features.mapped import MappedFile, Pages, map_array, map_arrays
from bmnas.features.reading import Reading
from bmnas.features.samples import FeatureSamples, RawInput, label_tensor
from bmnas.features.transfer import moved, room
from bmnas.machine.distributed import (
    barrier,
    broadcast,
    gather,
    is_rank_zero,
    on_rank_zero,
    rank,
    world_size,
)
from bmnas.machine.errors import UserError
from bmnas.machine.files import (
    atomic_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    sha256_json,
    write_json,
)
from bmnas.machine.progress import Progress
from bmnas.tasks.task import Array, Modality, Part, Task

FORMAT = "bmnas.features/2"
_BATCH = 256
_HASH_ROWS = 4096
_MASK = ".mask"  # ends the name of a mask's file
_AGAIN = "delete its folder, it will be made again"


@dataclass(frozen=True)
class FeatureCache:
    """Features of the samples of some parts of a task, and the masks of those that have one.

    ``seconds`` is what the extraction took when it was done, also where the cache was reused.
    ``keys`` are the entries' hashes, which change with data and backbones. ``pages`` bounds what of
    the files lies in memory, None where the features have moved to a device.
    """

    task: Task
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    arrays: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    rows: dict[str, Array]
    seconds: float
    keys: tuple[str, ...]
    pages: Pages | None

    def on(
        self, device: torch.device, names: Sequence[str] | None = None, budget: int | None = None
    ) -> FeatureCache:
        """Return the features ``names`` (default: all), on ``device`` if they find room there.

        ``budget`` is how many bytes they may take (default: see ``transfer.room``). Where they find
        none, and on a CPU, they are read from the files as batches need them.
        """
        chosen = self.names if names is None else tuple(names)
        arrays = {name: self.arrays[name] for name in chosen}
        masks = {name: self.masks[name] for name in chosen if name in self.masks}
        size = sum(array.nbytes for array in (*arrays.values(), *masks.values()))
        here = replace(self, names=chosen, arrays=arrays, masks=masks)
        if size > (room(device) if budget is None else budget):
            return here
        arrays, masks = (moved(each, device, self.pages) for each in (arrays, masks))
        return replace(here, arrays=arrays, masks=masks, pages=None)

    def samples(self, *parts: Part) -> FeatureSamples:
        """Return the samples of ``parts``, part after part, without copying a feature.

        Raises ValueError for a part that the cache was not opened for.
        """
        missing = [part for part in parts if part not in self.parts]
        if missing:
            raise ValueError(f"received part {missing[0]!r}, expected of {', '.join(self.parts)}")
        chosen = self.task.samples(*parts)
        rows = {}
        for modality in self.task.modalities:
            position = np.searchsorted(self.rows[modality.name], modality.rows_of(chosen))
            rows[modality.name] = torch.from_numpy(position)
        labels, extras = label_tensor(self.task, chosen), {}
        if self.masks:
            # Networks that read tokens read what else the task says of a sample.
            extras = {n: torch.from_numpy(x[chosen]) for n, x in self.task.extras.items()}
        return FeatureSamples(self.names, self.arrays, rows, labels, self.pages, self.masks, extras)


def open_features(
    task: Task,
    backbones: Mapping[str, Backbone],
    *,
    parts: tuple[Part, ...],
    reading: Reading,
    folder: Path,
    device: torch.device,
    progress: Progress,
    dtype: str = "float32",
) -> FeatureCache:
    """Return the features of ``parts``, from ``folder`` where nothing changed, else extracted.

    Files are of ``dtype``: float32, float16 or bfloat16.
    An entry's name is a hash of the backbone's weights, of the data of its rows, of ``reading``
    and ``dtype``, so a change of any makes another entry; those of the modality, ``reading`` and
    ``dtype`` that it replaces are removed. Whoever calls this holds ``folder`` or the one above,
    see ``lock_folders``. Raises UserError when an entry is damaged, and where a feature has numbers
    that ``dtype`` has no room for.
    """
    on_rank_zero(lambda: remove_leftovers(folder))
    names: list[str] = []
    files: dict[str, MappedFile] = {}
    masks: dict[str, torch.Tensor] = {}
    rows: dict[str, Array] = {}
    keys: list[str] = []
    seconds = 0.0
    samples = task.samples(*parts)
    for modality in task.modalities:
        backbone = backbones[modality.name].to(device).eval()
        used = np.unique(modality.rows_of(samples))
        rows[modality.name] = used
        key = _key(modality, backbone, used, reading, dtype)
        keys.append(key)
        entry = folder / f"{modality.name}-{key[:16]}"
        if broadcast(not entry.exists()):
            _extract(modality, backbone, used, reading, dtype, entry, key, device, progress)
        manifest = _read_manifest(entry, key)
        on_rank_zero(functools.partial(_remove_stale, entry, modality.name, reading, dtype))
        seconds += float(manifest["seconds"])
        names += [f"{modality.name}.{feature}" for feature in backbone.feature_names]
        for file, shape in manifest["shapes"].items():
            path, name = entry / f"{file}.npy", f"{modality.name}.{file.removesuffix(_MASK)}"
            _require_checksum(path, manifest["crc32"].get(file))
            if file.endswith(_MASK):
                masks[name], _ = map_array(path, tuple(shape), "bool")
            else:
                files[name] = MappedFile(path, tuple(shape), dtype)
    arrays, pages = map_arrays(files)
    return FeatureCache(task, parts, tuple(names), arrays, masks, rows, seconds, tuple(keys), pages)


def cache_bytes(rows: int, length: int, channels: int, dtype: str) -> int:
    """Return the size of one feature in the cache, its header of some dozen bytes left out."""
    return rows * length * channels * file_dtype(dtype).itemsize


def weights_hash(module: torch.nn.Module) -> str:
    """Return a SHA-256 over the names, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: NumPy does not know every type of torch, such as bfloat16.
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_hash(data: Array, rows: Array) -> str:
    """Return a SHA-256 over the given rows of an array, read in chunks."""
    digest = hashlib.sha256(f"{data.dtype} {data.shape[1:]} {len(rows)}\n".encode())
    for start in range(0, len(rows), _HASH_ROWS):
        digest.update(np.ascontiguousarray(data[rows[start : start + _HASH_ROWS]]).tobytes())
    return digest.hexdigest()


def _key(modality: Modality, backbone: Backbone, rows: Array, reading: Reading, dtype: str) -> str:
    parts = {
        "format": FORMAT,
        "spec": backbone.spec(),
        "weights": weights_hash(backbone),
        "data": rows_hash(modality.data, rows),
        **reading.key,
        "dtype": dtype,
    }
    return sha256_json(parts)


def _remove_stale(entry: Path, modality: str, reading: Reading, dtype: str) -> None:
    """Remove the entries beside ``entry`` that it replaces; an unreadable one stays.

    A folder of backbones belongs to one backbone a modality, so another entry of one ``reading``
    and ``dtype`` is of a backbone that was trained anew. Others serve other configurations, but for
    those of another format, which nobody reads any more.
    """
    own = {"format": FORMAT, **reading.key, "dtype": dtype}
    name = re.compile(re.escape(modality) + "-[0-9a-f]{16}")
    for other in list(entry.parent.iterdir()):
        if other == entry or not name.fullmatch(other.name):
            continue
        with contextlib.suppress(UserError):
            manifest = read_json(other / "manifest.json")
            if not isinstance(manifest, dict):
                continue
            if manifest.get("format") != FORMAT or own.items() <= manifest.items():
                remove_folder(other)


def _extract(
    modality: Modality,
    backbone: Backbone,
    rows: Array,
    reading: Reading,
    dtype: str,
    entry: Path,
    key: str,
    device: torch.device,
    progress: Progress,
) -> None:
    """Make the folder ``entry``: of several ranks each computes its part, rank zero writes."""
    started = time.perf_counter()
    source = RawInput(Modality(modality.name, modality.type, modality.data), backbone, rows)

    def read(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        return _read_features(backbone, reading, source.batch(chosen).to(device))

    shapes = {name: (len(rows), *x.shape[1:]) for name, x in read(torch.arange(1)).items()}
    types = {name: "bool" if name.endswith(_MASK) else dtype for name in shapes}
    with contextlib.ExitStack() as opened:
        files: dict[str, ArrayWriter] = {}
        if is_rank_zero():
            aside = opened.enter_context(atomic_folder(entry))
            for name, shape in shapes.items():
                binary = opened.enter_context((aside / f"{name}.npy").open("wb"))
                files[name] = ArrayWriter(binary, shape, file_dtype(types[name]))
        batches = torch.arange(len(rows)).split(_BATCH)
        stage = opened.enter_context(progress.stage(f"features of {modality.name}", len(batches)))
        for start in range(0, len(batches), world_size()):
            group = batches[start : start + world_size()]
            own = read(group[rank()]) if rank() < len(group) else {}
            arrays = {
                name: to_file(x.cpu(), types[name], f"{modality.name}.{name}")
                for name, x in own.items()
            }
            for found in gather(arrays):
                for name in files.keys() & found:
                    files[name].append(found[name])
            stage.advance(len(group))
        for file in files.values():
            file.flush()
        if is_rank_zero():
            manifest = {
                "format": FORMAT,
                "key": key,
                **reading.key,
                "dtype": dtype,
                "shapes": shapes,
                "crc32": {name: file.checksum for name, file in files.items()},
                "seconds": time.perf_counter() - started,
            }
            write_json(aside / "manifest.json", manifest)
    barrier()


@torch.inference_mode()
def _read_features(
    backbone: Backbone, reading: Reading, x: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what is kept of each feature of the raw input ``x``, and masks, by their files."""
    found, content = {}, backbone.mask(x)
    for name, feature in zip(backbone.feature_names, backbone.features(x), strict=True):
        found[name] = reading.read(feature).float()
        mask = reading.mask(found[name], content)
        if mask is not None:
            found[f"{name}{_MASK}"] = mask
    return found


def _require_checksum(path: Path, expected: object) -> None:
    try:
        checksum = checksum_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from error
    if checksum != expected:
        raise UserError(
            f"{path}: damaged feature cache: received checksum {checksum:08x}, expected that of "
            f"its manifest; {_AGAIN}"
        )


def _read_manifest(entry: Path, key: str) -> dict[str, Any]:
    manifest = read_json(entry / "manifest.json")
    types = {"crc32": dict, "shapes": dict, "seconds": float}
    if (
        not isinstance(manifest, dict)
        or manifest.get("key") != key
        or not all(isinstance(manifest.get(name), type_) for name, type_ in types.items())
    ):
        raise UserError(
            f"{entry}: damaged feature cache; delete this folder, it will be made again"
        )
    return manifest
