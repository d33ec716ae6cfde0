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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmnas.backbones.base import Backbone
from bmnas.features.files import (
    AGAIN,
    Form,
    MappedArrays,
    MappedFile,
    checksum_of,
    moved,
    to_file,
    written,
)
from bmnas.features.missing import silent
from bmnas.features.reshape import MASK, Reading
from bmnas.features.samples import FeatureSamples, RawInput, ahead, label_tensor
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
    read_json,
    remove_folder,
    remove_leftovers,
    sha256_json,
)
from bmnas.machine.progress import Progress
from bmnas.machine.tensor_file import tensors_hash
from bmnas.tasks.rows import Data, Rows, pieces
from bmnas.tasks.task import Array, Modality, Part, Task

FORMAT = "bmnas.features/2"
#: Of a device's free memory, what features may take; networks, gradients and batches need some.
FRACTION = 0.6


@dataclass(frozen=True)
class FeatureCache:
    """Features of the samples of some parts of a task, and the masks of those that have one.

    ``seconds`` is what the extraction took when it was done, also where the cache was reused.
    ``keys`` are the entries' hashes, which change with data and backbones. ``arrays`` and ``masks``
    are mapped files (``MappedArrays``) until they have moved to a device.
    """

    task: Task
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    arrays: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]
    rows: dict[str, Array]
    seconds: float
    keys: tuple[str, ...]

    def on(
        self, device: torch.device, names: Sequence[str] | None = None, budget: int | None = None
    ) -> FeatureCache:
        """Return the features ``names`` (default: all), on ``device`` if they find room there.

        ``budget`` is how many bytes they may take (default: see ``room``). Where they find
        none, and on a CPU, they are read from the files as batches need them.
        """
        here = replace(self, names=self.names if names is None else tuple(names))
        wanted = [
            (arrays, [name for name in here.names if name in arrays])
            for arrays in (self.arrays, self.masks)
        ]
        size = sum(arrays[name].nbytes for arrays, names in wanted for name in names)
        if size > (room(device) if budget is None else budget):
            return here
        arrays, masks = (moved(several, names, device) for several, names in wanted)
        return replace(here, arrays=arrays, masks=masks)

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
        return FeatureSamples(self.names, self.arrays, rows, labels, self.masks, extras)


@dataclass(frozen=True)
class Folds:
    """Backbones of a modality, each trained without some rows: for features nobody knows by heart.

    ``of_row`` (rows of the modality) is the number of the backbone that has not seen a row, -1 for
    rows that the modality's own backbone is asked for.
    """

    backbones: tuple[Backbone, ...]
    of_row: Array


def open_features(
    task: Task,
    backbones: Mapping[str, Backbone],
    *,
    folds: Mapping[str, Folds] | None = None,
    parts: tuple[Part, ...],
    reading: Reading,
    folder: Path,
    device: torch.device,
    progress: Progress,
    dtype: str = "float32",
) -> FeatureCache:
    """Return the features of ``parts``, from ``folder`` where nothing changed, else extracted.

    Files are of ``dtype``: float32, float16 or bfloat16. ``folds``, by modality, say which rows
    another backbone than the modality's own is asked for.
    An entry's name is a hash of the backbone's weights, of the data of its rows, of ``reading``
    and ``dtype``, so a change of any makes another entry; those of the modality, ``reading`` and
    ``dtype`` that it replaces are removed. Whoever calls this holds ``folder`` or the one above,
    see ``lock_folders``. Raises UserError when an entry is damaged, and where a feature has numbers
    that ``dtype`` has no room for.
    """
    on_rank_zero(lambda: remove_leftovers(folder))
    names: list[str] = []
    files: dict[str, MappedFile] = {}
    masks: dict[str, MappedFile] = {}
    rows: dict[str, Array] = {}
    keys: list[str] = []
    seconds = 0.0
    samples = task.samples(*parts)
    for modality in task.modalities:
        backbone = backbones[modality.name].to(device).eval()
        rows[modality.name] = np.unique(modality.rows_of(samples))
        used = rows[modality.name]
        own = (folds or {}).get(modality.name)
        networks, fold = [backbone], np.full(len(used), -1)
        if own is not None:
            networks += [each.to(device).eval() for each in own.backbones]
            fold = own.of_row[used]
        entry = _Entry(modality, tuple(networks), fold, used, reading, dtype, folder)
        if broadcast(not entry.folder.exists()):
            entry.extract(device, progress)
        manifest = entry.read_manifest()
        on_rank_zero(entry.remove_stale)
        keys.append(entry.key)
        seconds += manifest["seconds"]
        names += [f"{modality.name}.{feature}" for feature in backbone.feature_names]
        for file, shape in manifest["shapes"].items():
            kept = masks if file.endswith(MASK) else files
            kept[f"{modality.name}.{file.removesuffix(MASK)}"] = MappedFile(
                entry.folder / f"{file}.npy", tuple(shape), entry.type_of(file)
            )
    mapped = MappedArrays(files), MappedArrays(masks)
    return FeatureCache(task, parts, tuple(names), *mapped, rows, seconds, tuple(keys))


def room(device: torch.device) -> int:
    """Return how many bytes of features may lie on ``device``: a part of what is free there.

    A CPU has them where they are, so there is none to ask for.
    """
    if device.type == "cpu":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(FRACTION * (free + unused))


def weights_hash(module: torch.nn.Module) -> str:
    """Return a SHA-256 over the names, shapes and bytes of a module's parameters and buffers."""
    return tensors_hash(module.state_dict())


def rows_hash(data: Data, rows: Array) -> str:
    """Return a SHA-256 over the given rows of an array, read in chunks, or the digest of others."""
    if isinstance(data, Rows):
        return data.digest(rows)
    digest = hashlib.sha256(f"{data.dtype} {data.shape[1:]} {len(rows)}\n".encode())
    for some in pieces(data, rows):
        if data.dtype.kind == "T":  # whose bytes are places in memory
            texts = [text.encode("utf-8", "surrogatepass") for text in data[some].tolist()]
            digest.update(b"".join(len(text).to_bytes(8, "big") + text for text in texts))
            continue
        digest.update(np.ascontiguousarray(data[some]).tobytes())
    return digest.hexdigest()


def absent_key(modality: Modality, rows: Array) -> dict[str, str]:
    """Return what a digest of ``rows`` (n,) has to hold of those that stand for nothing."""
    if modality.absent is None:
        return {}
    return {"absent": hashlib.sha256(modality.absent[rows].tobytes()).hexdigest()}


@dataclass(frozen=True)
class _Entry:
    """The features of some rows of a modality, in a folder of ``parent``.

    Row i is that of ``networks[fold[i] + 1]``; the first is the modality's own backbone.
    """

    modality: Modality
    networks: tuple[Backbone, ...]
    fold: Array
    rows: Array
    reading: Reading
    dtype: str
    parent: Path

    @property
    def form(self) -> dict[str, object]:
        return {"format": FORMAT, **self.reading.key, "dtype": self.dtype}

    @functools.cached_property
    def key(self) -> str:
        return sha256_json(
            {
                "spec": self.networks[0].spec(),
                "weights": [weights_hash(network) for network in self.networks],
                "fold": hashlib.sha256(self.fold.astype("<i8").tobytes()).hexdigest(),
                "data": rows_hash(self.modality.data, self.rows),
                **absent_key(self.modality, self.rows),
                **self.form,
            }
        )

    @property
    def folder(self) -> Path:
        return self.parent / f"{self.modality.name}-{self.key[:16]}"

    def type_of(self, file: str) -> str:
        return "bool" if file.endswith(MASK) else self.dtype

    def extract(self, device: torch.device, progress: Progress) -> None:
        """Make the folder: of several ranks each computes its part, rank zero writes.

        What a process that was stopped had written is not computed again.
        """
        name = self.modality.name
        source = RawInput(replace(self.modality, index=None), self.networks[0], self.rows)
        one = self._kept(source.batch(torch.arange(1)).to(device), torch.from_numpy(self.fold[:1]))
        forms = {
            file: Form(self.type_of(file), (len(self.rows), *x.shape[1:]))
            for file, x in one.items()
        }
        with contextlib.ExitStack() as opened:
            writer = None
            if is_rank_zero():
                identity = {"key": self.key, **self.form}
                writer = opened.enter_context(written(self.folder, identity, forms))
            done = broadcast(0 if writer is None else writer.rows)
            rows = torch.arange(done, len(self.rows))
            left = [chosen for chosen in rows.split(source.at_once) if len(chosen)]
            own = left[rank() :: world_size()]
            inputs = ahead(functools.partial(source.batch, chosen) for chosen in own)
            stage = opened.enter_context(progress.stage(f"features of {name}", len(self.rows)))
            stage.advance(done)
            for start in range(0, len(left), world_size()):
                group = left[start : start + world_size()]
                arrays = {}
                if rank() < len(group):
                    fold = torch.from_numpy(self.fold)[group[rank()]]
                    for file, x in self._kept(next(inputs).to(device), fold).items():
                        arrays[file] = to_file(x.cpu(), self.type_of(file), f"{name}.{file}")
                found, count = gather(arrays), sum(map(len, group))
                if writer is not None:
                    writer.write(found, count)
                stage.advance(count)
        barrier()

    @torch.inference_mode()
    def _kept(self, x: torch.Tensor, fold: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is kept of each feature of the raw input ``x``, and masks, by their files."""
        found: dict[str, torch.Tensor] = {}
        for number in fold.unique().tolist():
            asked = (fold == number).nonzero().flatten().to(x.device)
            for file, kept in self._kept_by(self.networks[number + 1], x[asked]).items():
                whole = found.setdefault(file, kept.new_empty(len(x), *kept.shape[1:]))
                whole[asked] = kept
        return found

    def _kept_by(self, network: Backbone, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found, content, given = {}, network.mask(x), network.given(x)
        for name, feature in zip(network.feature_names, network.features(x), strict=True):
            found[name] = silent(self.reading.read(feature).float(), given)
            mask = self.reading.mask(found[name], content)
            if mask is not None:
                found[f"{name}{MASK}"] = mask
        return found

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest; raises UserError where it or a file is not what was written."""
        manifest = read_json(self.folder / "manifest.json")
        types = {"crc32": dict, "shapes": dict, "seconds": float}
        if (
            not isinstance(manifest, dict)
            or manifest.get("key") != self.key
            or not all(isinstance(manifest.get(name), type_) for name, type_ in types.items())
        ):
            raise UserError(
                f"{self.folder}: damaged feature cache; delete this folder, it will be made again"
            )
        for file in manifest["shapes"]:
            path = self.folder / f"{file}.npy"
            try:
                checksum = checksum_of(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from error
            if checksum != manifest["crc32"].get(file):
                raise UserError(
                    f"{path}: damaged feature cache: received checksum {checksum:08x}, expected "
                    f"that of its manifest; {AGAIN}"
                )
        return manifest

    def remove_stale(self) -> None:
        """Remove the entries that this one replaces; an unreadable one stays.

        A folder of backbones belongs to one backbone a modality, so another entry of the same form
        is of a backbone that was trained anew. Others serve other configurations, but for those of
        another format, which nobody reads any more, and unfinished ones, which cost time alone.
        """
        name = re.escape(self.modality.name) + "-[0-9a-f]{16}"
        for other in list(self.parent.iterdir()):
            if re.fullmatch(rf"\.{name}\.part", other.name):
                remove_folder(other)
            if other == self.folder or not re.fullmatch(name, other.name):
                continue
            with contextlib.suppress(UserError):
                manifest = read_json(other / "manifest.json")
                if isinstance(manifest, dict) and (
                    manifest.get("format") != FORMAT or self.form.items() <= manifest.items()
                ):
                    remove_folder(other)
