"""In which formats a network can be written, and where: never over what is not a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bmnas_serve import manifest as bundle
from bmnas_serve.manifest import MODEL_FILE, TensorSpec
from torch import nn

from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_json
from bmnas_export.graph import export_graph

#: Writes a network, from the inputs to the outputs that are described, to a folder, with metadata
#: where there is room for it, and returns the names of the files. Raises ExportError when the
#: target cannot hold the network.
Target = Callable[
    [Path, nn.Module, Sequence[TensorSpec], Sequence[TensorSpec], Mapping[str, str]],
    tuple[str, ...],
]


def write_onnx(
    folder: Path,
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> tuple[str, ...]:
    """Write one ONNX graph, which onnxruntime runs."""
    (folder / MODEL_FILE).write_bytes(export_graph(network, inputs, outputs, metadata))
    return (MODEL_FILE,)


TARGETS: dict[str, Target] = {"onnx": write_onnx}


def target_named(name: str) -> Target:
    """Return the target called ``name``; raises UserError that lists those there are."""
    if name not in TARGETS:
        known = list(TARGETS)
        raise UserError(
            f"received target {name!r}, expected one of {', '.join(known)}{close(name, known)}"
        )
    return TARGETS[name]


def checked_target(out: Path) -> Path:
    """Return the real path of the folder to write, which is absent, empty, or a bundle.

    Raises UserError when there is something else, or a bundle with files that are not its own:
    replacing it would delete them.
    """
    try:
        target = out.resolve()
        nearest = next(place for place in (target, *target.parents) if place.exists())
        if not nearest.is_dir():
            place = "" if nearest == target else f"cannot be made: {nearest} "
            raise UserError(
                f"{out}: {place}is a file, expected a folder that is new or holds a bundle"
            )
        found = sorted(target.iterdir()) if nearest == target else []
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out}: cannot be used: {reason}") from error
    if not found:
        return target
    own = _own_files(out, target)
    foreign = [path.name for path in found if path.name not in own or not path.is_file()]
    if foreign:
        raise UserError(
            f"{out}: holds {foreign[0]!r}, which is not part of its bundle and would be deleted:"
            " move it, or choose another folder with --out"
        )
    return target


def _own_files(out: Path, target: Path) -> set[str]:
    refusal = (
        f"{out}: is a folder that holds no bundle, and nothing there is deleted: choose another"
        " folder with --out"
    )
    path = target / bundle.MANIFEST_FILE
    try:
        manifest = read_json(path) if path.is_file() else None
    except UserError as error:
        raise UserError(f"{refusal} ({error})") from error
    # An older format is a bundle too, a stranger's manifest.json is not.
    family = bundle.FORMAT.partition("/")[0]
    if not isinstance(manifest, dict) or not str(manifest.get("format")).startswith(f"{family}/"):
        raise UserError(refusal)
    files = manifest.get("files")
    return {bundle.MANIFEST_FILE, *(files if isinstance(files, dict) else ())}
