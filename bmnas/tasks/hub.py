"""Folders of pretrained models: on this machine, or of the Hugging Face hub and then kept here."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import read_json

PREFIX = "hf:"
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_SMALL = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def absolute(backbone: str, folder: Path) -> str:
    """Return ``hf:<folder>`` with a path from ``folder`` made absolute; an id of the hub stays."""
    name = backbone.removeprefix(PREFIX)
    path = (folder / Path(name).expanduser()).resolve()
    return backbone if not path.exists() and _HUB.fullmatch(name) else f"{PREFIX}{path}"


def model_folder(backbone: str) -> Path:
    """Return the folder of ``hf:<folder>``, or of ``hf:<owner>/<name>``, a model of the hub.

    That is fetched once, at ``@<revision>`` (a commit, tag or branch; main without it); what is
    kept of it is then used without asking, so that it stays the same. Raises UserError where it
    cannot be fetched, and says how the folder is made elsewhere.
    """
    name = backbone.removeprefix(PREFIX)
    path, match = Path(name).expanduser(), _HUB.fullmatch(name)
    if path.exists() or match is None:
        return path
    repo, revision = match.groups()
    try:
        hub = importlib.import_module("huggingface_hub")
        for offline in (True, False):
            for weights in _WEIGHTS:
                try:
                    folder = Path(
                        hub.snapshot_download(
                            repo,
                            revision=revision,
                            allow_patterns=[*_SMALL, weights],
                            local_files_only=offline,
                        )
                    )
                except hub.errors.LocalEntryNotFoundError:
                    if offline:
                        continue
                    raise
                if _whole(folder, weights):
                    return folder
        raise UserError("it has not all weights as .safetensors or pytorch_model.bin")
    except Exception as error:  # the network's and the hub's own errors are of many kinds
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"backbone {backbone}: there is no such folder, and as a model of the Hugging Face hub "
            f"it cannot be fetched ({one_line(error, 120)}): where there is a network, run hf "
            f"download {repo}{at} --local-dir DIR, and write hf:DIR"
        ) from error


def _whole(folder: Path, weights: str) -> bool:
    """Tell whether files ``weights`` are there, and all that an index of them names.

    What is kept of a fetch that was broken off has the index and some of them.
    """
    named = {
        name
        for index in folder.glob(f"{weights}.index.json")
        for name in read_json(index)["weight_map"].values()
    }
    return any(folder.glob(weights)) and all((folder / name).is_file() for name in named)
