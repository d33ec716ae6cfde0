"""``bmnas data``: data packs from public originals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True)


@data.callback()
def group() -> None:
    """Build a data pack from its public originals, which you have downloaded.

    Example: bmnas data av-digits --mnist mnist/ --fsdd fsdd/ --out packs/av-digits
    """


@data.command("av-digits")
def av_digits(
    mnist: Annotated[
        Path, typer.Option(help="Folder of MNIST's four IDX files, plain or .gz.", metavar="DIR")
    ],
    fsdd: Annotated[
        Path, typer.Option(help="Folder of the Free Spoken Digit Dataset.", metavar="DIR")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the pack's four .npz files.", metavar="DIR")
    ],
) -> None:
    """Build av-digits from MNIST and the Free Spoken Digit Dataset (github Jakobovski).

    With the complete originals the pairs equal those of the published pack. MNIST is commonly
    stated to be under CC BY-SA 3.0, the recordings are under CC BY-SA 4.0.

    Example: bmnas data av-digits --mnist mnist/ --fsdd fsdd/recordings --out packs/av-digits
    """
    from rich.console import Console

    from bmnas.tasks.av_digits_build import build_av_digits

    console = Console(stderr=True)
    with console.status("av-digits") as status:
        files = build_av_digits(mnist, fsdd, out, report=status.update)
    for file in files:
        print(file)
    console.print(f"Next: bmnas search --task av-digits --data {out}", markup=False, soft_wrap=True)
