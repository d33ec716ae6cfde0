"""The feature cache: what frozen backbones say of every sample, pooled, once, on disk.

Legend: L length, C_raw channels of a raw feature. Pooling has no weights (spec section 1), so the
pooled features of frozen backbones are constants of the sample. An entry of the cache holds one
modality's features of the rows that some parts use: one ``.npy`` file of shape
(rows, L, C_raw) per feature and a manifest with their checksums; media that several samples share
are stored once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmnas.backbones.base import Backbone
from bmnas.features.array_file import ArrayWriter, checksum_of, create_files
from bmnas.features.dtype import file_dtype, to_file
from bmnas.features.mapped import Pages, map_array
from bmnas.features.reshape import Pool
from bmnas.features.samples import FeatureSamples, RawInput, label_tensor
from bmnas.features.transfer import moved, room
from bmnas.machine.distribution.ranks import agreed, first, size, span, wait, writer
from bmnas.machine.distribution.writing import shared_folder
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, remove_folder, remove_leftovers, write_json
from bmnas.machine.progress import Progress
from bmnas.tasks.task import Array, Modality, Part, Task

FORMAT = "bmnas.features/1"
_BATCH = 256
_HASH_ROWS = 4096


@dataclass(frozen=True)
class FeatureCache:
    """Pooled features of the samples of some parts of a task.

    ``seconds`` is what the extraction took when it was done, also where the cache was reused.
    ``keys`` are the entries' hashes, which change with data and backbones. ``pages`` bounds what of
    the files lies in memory, None where the features have moved to a device.
    """

    task: Task
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    arrays: dict[str, torch.Tensor]
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
        size = sum(array.nbytes for array in arrays.values())
        if size > (room(device) if budget is None else budget):
            return replace(self, names=chosen, arrays=arrays)
        on_device = moved(arrays, device, self.pages)
        return replace(self, names=chosen, arrays=on_device, pages=None)

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
        labels = label_tensor(self.task, chosen)
        return FeatureSamples(self.names, self.arrays, rows, labels, self.pages)


def open_features(
    task: Task,
    backbones: Mapping[str, Backbone],
    *,
    parts: tuple[Part, ...],
    length: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
    dtype: str = "float32",
) -> FeatureCache:
    """Return the features of ``parts``, from ``folder`` where nothing changed, else extracted.

    Files are of ``dtype``: float32, float16 or bfloat16.
    An entry's name is a hash of the backbone's weights, of the data of its rows and of the
    shape, so a change of any makes another entry; those of the modality, ``length`` and
    ``dtype`` that it replaces are removed. Whoever calls this holds ``folder`` or the one above,
    see ``runs.locked``. Raises UserError when an entry is damaged, and where a feature has numbers
    that ``dtype`` has no room for.
    """
    first(lambda: remove_leftovers(folder))
    names: list[str] = []
    arrays: dict[str, torch.Tensor] = {}
    maps: list[mmap.mmap] = []
    rows: dict[str, Array] = {}
    keys: list[str] = []
    seconds = 0.0
    samples = task.samples(*parts)
    for modality in task.modalities:
        backbone = backbones[modality.name].to(device).eval()
        used = np.unique(modality.rows_of(samples))
        rows[modality.name] = used
        key = _key(modality, backbone, used, length, dtype)
        keys.append(key)
        entry = entry_folder(folder, modality.name, key)
        if agreed(not entry.exists()):
            _extract(modality, backbone, used, length, dtype, entry, key, device, progress)
        manifest = _read_manifest(entry, key)
        first(functools.partial(_remove_stale, entry, modality.name, length, dtype))
        seconds += float(manifest["seconds"])
        for feature, channels in zip(
            backbone.feature_names, backbone.feature_channels, strict=True
        ):
            name = f"{modality.name}.{feature}"
            names.append(name)
            path = entry / f"{feature}.npy"
            _require_checksum(path, manifest["crc32"].get(feature))
            arrays[name], mapped = map_array(path, (len(used), length, channels), dtype)
            maps.append(mapped)
    return FeatureCache(task, parts, tuple(names), arrays, rows, seconds, tuple(keys), Pages(maps))


def entry_folder(folder: Path, modality: str, key: str) -> Path:
    """Return where the cache in ``folder`` keeps a modality's features, ``<feature>.npy`` each."""
    return folder / f"{modality}-{key[:16]}"


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


def _key(modality: Modality, backbone: Backbone, rows: Array, length: int, dtype: str) -> str:
    parts = {
        "format": FORMAT,
        "spec": backbone.spec(),
        "weights": weights_hash(backbone),
        "data": rows_hash(modality.data, rows),
        "length": length,
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _remove_stale(entry: Path, modality: str, length: int, dtype: str) -> None:
    """Remove the entries beside ``entry`` that it replaces; an unreadable one stays.

    A folder of backbones belongs to one backbone a modality, so another entry of one ``length`` and
    ``dtype`` is of a backbone that was trained anew. Others serve other configurations.
    """
    name = re.compile(re.escape(modality) + "-[0-9a-f]{16}")
    for other in list(entry.parent.iterdir()):
        if other == entry or not name.fullmatch(other.name):
            continue
        with contextlib.suppress(UserError):
            manifest = read_json(other / "manifest.json")
            shape = isinstance(manifest, dict) and (manifest.get("length"), manifest.get("dtype"))
            if shape == (length, dtype):
                remove_folder(other)


@torch.inference_mode()
def _extract(
    modality: Modality,
    backbone: Backbone,
    rows: Array,
    length: int,
    dtype: str,
    entry: Path,
    key: str,
    device: torch.device,
    progress: Progress,
) -> None:
    started = time.perf_counter()
    pool = Pool(length)
    source = RawInput(Modality(modality.name, modality.type, modality.data), backbone, rows)
    channels = dict(zip(backbone.feature_names, backbone.feature_channels, strict=True))
    own = span(len(rows), _BATCH)  # whole batches, so that every rank computes what one would
    with (
        shared_folder(entry) as aside,
        contextlib.ExitStack() as opened,
        progress.stage(f"features of {modality.name}", -(-len(own) // _BATCH)) as stage,
    ):
        paths = {name: aside / f"{name}.npy" for name in channels}
        first(functools.partial(create_files, paths.values()))
        files = {
            name: ArrayWriter(
                opened.enter_context(path.open("r+b")),
                (len(rows), length, channels[name]),
                file_dtype(dtype),
                own.start,
            )
            for name, path in paths.items()
        }
        for start in range(own.start, own.stop, _BATCH):
            chosen = torch.arange(start, min(start + _BATCH, own.stop))
            features = backbone.features(source.batch(chosen).to(device))
            for (name, file), feature in zip(files.items(), features, strict=True):
                pooled = pool(feature).float().cpu()
                file.append(to_file(pooled, dtype, f"{modality.name}.{name}"))
            stage.advance()
        for file in files.values():
            file.flush()
        opened.close()
        wait()
        if not writer():
            return
        checksums = {name: file.checksum for name, file in files.items()}
        if size() > 1:
            checksums = {name: checksum_of(path) for name, path in paths.items()}
        manifest = {
            "format": FORMAT,
            "key": key,
            "rows": len(rows),
            "length": length,
            "dtype": dtype,
            "features": channels,
            "crc32": checksums,
            "seconds": time.perf_counter() - started,
        }
        write_json(aside / "manifest.json", manifest)


def _require_checksum(path: Path, expected: object) -> None:
    try:
        checksum = checksum_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; delete its folder, it will be made again"
        ) from error
    if checksum != expected:
        raise UserError(
            f"{path}: damaged feature cache: received checksum {checksum:08x}, expected that of "
            "its manifest; delete its folder, it will be made again"
        )


def _read_manifest(entry: Path, key: str) -> dict[str, Any]:
    manifest = read_json(entry / "manifest.json")
    if (
        not isinstance(manifest, dict)
        or manifest.get("key") != key
        or not isinstance(manifest.get("crc32"), dict)
        or not isinstance(manifest.get("seconds"), float)
    ):
        raise UserError(
            f"{entry}: damaged feature cache; delete this folder, it will be made again"
        )
    return manifest
