from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from bmnas.cli.options import Json, StageOptions, grouped
from bmnas.cli.output import next_command
from bmnas.machine.errors import UserError


@dataclass(frozen=True)
class Shape:
    """Options that belong together."""

    cells: Annotated[int, typer.Option(help="Number of Cells.")]
    steps: Annotated[int | None, typer.Option(help="Steps.")] = None


@grouped
def command(*, name: str = "x", shape: Shape, as_json: Json = False) -> None:
    """Do something."""
    print(name, shape, as_json)


def invoke(*words: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "100"})
    return result.output


def test_the_fields_of_a_group_are_options_and_arrive_as_one_argument() -> None:
    assert invoke("--cells", "3", "--json") == "x Shape(cells=3, steps=None) True\n"
    assert invoke("--cells", "3", "--steps", "1") == "x Shape(cells=3, steps=1) False\n"
    assert "Missing option '--cells'" in invoke()


def test_help_shows_every_option_in_its_place() -> None:
    shown = invoke("--help")
    places = [shown.index(text) for text in ("--name", "--json", "--cells", "--steps")]
    assert places == sorted(places)
    assert "Do something." in shown
    assert "Number of Cells." in shown
    assert shown.index("Options that belong together") < shown.index("--cells")


def test_what_becomes_of_results_that_are_there() -> None:
    assert StageOptions().arguments()["existing"] == "refuse"
    assert StageOptions(resume=True).arguments()["existing"] == "resume"
    assert StageOptions(overwrite=True).arguments()["existing"] == "overwrite"
    with pytest.raises(UserError, match="received --resume and --overwrite, expected at most one"):
        StageOptions(resume=True, overwrite=True).arguments()


def test_the_next_command_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    next_command("train", "a run", batch_size=3, task=None)
    assert capsys.readouterr().err == "Next: bmnas train 'a run' --batch-size 3\n"
