"""Builds the kernels, once for a compiler and a processor, into the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from bmnas.machine.costs import proc_entry
from bmnas.machine.runtime import cache_folder

_SOURCES = ("common.h", "reshape.c", "mixture.c")
_FLAGS = (
    *("-std=c11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    # Neither changes a result: nobody reads errno or the floating-point flags.
    *("-fno-math-errno", "-fno-trapping-math"),
)
_SECONDS = 120


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Return the kernels, or None where this machine cannot have them; ``describe`` says why."""
    return _built()[0]


def describe() -> str:
    """Return ``native``, or why PyTorch's own operations do the work instead."""
    return _built()[1]


@functools.cache
def _built() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("BMNAS_NATIVE", "1") == "0":
        return None, "torch (BMNAS_NATIVE=0)"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None, "torch (no C compiler found)"
    try:
        library = ctypes.CDLL(str(_library(compiler)))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[0]
        return None, f"torch (the C compiler failed: {reason})"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"torch (the kernels could not be built: {error})"
    return library, "native"


def _library(compiler: str) -> Path:
    """Return the file of the built kernels, building them where they are not there yet."""
    source = resources.files("bmnas.spaces.cells.native") / "source"
    texts = {name: (source / name).read_text(encoding="utf-8") for name in _SOURCES}
    version = _run(compiler, "--version")
    parts = (*_FLAGS, version, _processor(), *texts.values())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"kernels-{digest}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            made = Path(folder) / path.name
            files = [str(Path(folder) / name) for name in _SOURCES if name.endswith(".c")]
            _run(compiler, *_FLAGS, "-o", str(made), *files, "-lm")
            made.replace(path)
    return path


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_SECONDS, errors="replace"
    )
    return done.stdout


def _processor() -> str:
    """Return what ``-march=native`` depends on."""
    flags = proc_entry("cpuinfo", "flags", "Features")
    if flags:
        return flags
    return f"{platform.machine()} {platform.processor()} {platform.node()}"
