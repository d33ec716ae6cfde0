"""The tasks that have a name of their own, and where their data is found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.tasks import av_digits, digits
from bmnas.tasks.task import Task


@dataclass(frozen=True)
class RegisteredTask:
    """What ``bmnas tasks`` says of a task, and how the task is loaded.

    ``samples`` counts train, validation and test. ``options`` maps each option to its values,
    the default first. ``files`` are those of the task's data pack, a folder called ``name``;
    without any the task carries its data, and ``load`` gets no folder.
    """

    name: str
    kind: str
    modalities: tuple[str, ...]
    samples: tuple[int, int, int]
    classes: int
    licence: str
    origin: str
    load: Callable[..., Task]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    build: str = ""

    def present(self, data: Path | None = None) -> bool:
        """Tell whether the task's data is here, in ``data`` or where ``BMNAS_DATA`` says."""
        return not self.files or any(self._holds(folder) for folder in self._candidates(data))

    def folder(self, data: Path | None) -> Path | None:
        """Return the absolute folder of the data; None when the task carries its own.

        Raises UserError when it is not found, or when ``data`` is given to a task that needs none.
        """
        if not self.files:
            if data is not None:
                raise UserError(f"task {self.name} carries its own data: leave --data out")
            return None
        for folder in self._candidates(data):
            if self._holds(folder):
                return folder.resolve()
        tried = " or ".join(str(folder) for folder in self._candidates(data))
        where = f"in {tried}" if tried else "as neither --data nor BMNAS_DATA is given"
        raise UserError(
            f"task {self.name}: expected {', '.join(self.files)}, not found {where}: give "
            f"--data DIR, or set BMNAS_DATA to the folder that holds {self.name}/; "
            f"`{self.build}` builds them"
        )

    def check_options(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Return every option with its value, the default where none is given.

        Raises UserError for an unknown option or value.
        """
        for name, value in options.items():
            if value not in self.options.get(name, ()):
                known = ", ".join(f"{key}={'|'.join(v)}" for key, v in self.options.items())
                near = "" if name in self.options else close(name, list(self.options))
                raise UserError(
                    f"task {self.name}: received option {name}={value}, "
                    f"expected {known or 'none: leave it out'}{near}"
                )
        return {name: options.get(name, values[0]) for name, values in self.options.items()}

    def _candidates(self, data: Path | None) -> list[Path]:
        if data is not None:
            # Both the pack itself and the folder of all packs are natural to give.
            return [data, data / self.name]
        packs = os.environ.get("BMNAS_DATA")
        return [Path(packs) / self.name] if packs else []

    def _holds(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in self.files)


REGISTERED: Mapping[str, RegisteredTask] = {
    task.name: task
    for task in (
        RegisteredTask(
            name="digits",
            kind="multiclass",
            modalities=("left (image 8x4)", "right (image 8x4)"),
            samples=(1078, 360, 359),
            classes=10,
            licence="CC BY 4.0",
            origin="comes with scikit-learn: Optical Recognition of Handwritten Digits (UCI)",
            load=digits.load_digits,
        ),
        RegisteredTask(
            name="av-digits",
            kind="multiclass",
            modalities=("image (image 28x28)", "audio (waveform, 1 s at 8 kHz)"),
            samples=(24000, 3000, 3000),
            classes=10,
            licence="images CC BY-SA 3.0 (MNIST, as commonly stated), audio CC BY-SA 4.0 (FSDD)",
            origin="--data DIR or $BMNAS_DATA/av-digits, built by `bmnas data av-digits` from "
            "MNIST and the Free Spoken Digit Dataset",
            load=av_digits.load_av_digits,
            options={
                "split": ("take", "speaker"),
                "image": ("weak", "full"),
                "audio": ("noisy", "clean"),
            },
            files=av_digits.FILES,
            build="bmnas data av-digits --mnist DIR --fsdd DIR --out DIR",
        ),
    )
}
