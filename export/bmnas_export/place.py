"""Where a bundle may be written: never over what is not a bundle."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bmnas_serve import manifest as bundle

from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json


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
    folders = {str(parent) for name in own for parent in PurePosixPath(name).parents}
    paths = {path.relative_to(target).as_posix(): path for path in sorted(target.rglob("*"))}
    foreign = [n for n, path in paths.items() if n not in (folders if path.is_dir() else own)]
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
