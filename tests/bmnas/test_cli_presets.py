from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from command_line import bmnas_command, one_line_error

from bmnas.pipeline.config import load_preset, preset_names


def test_the_list_names_every_preset_with_its_promise() -> None:
    printed = bmnas_command("presets")
    assert (printed.status, printed.err) == (0, "")
    lines = [line.strip() for line in printed.out.splitlines()]
    for name in preset_names():
        assert name in lines
    assert load_preset("ntu-1").promise["command"] in printed.out
    assert "\x1b" not in printed.out
    assert "freeze_backbones True" in " ".join(printed.out.split())


def test_json_is_one_object_with_every_setting() -> None:
    found = json.loads(bmnas_command("presets", "--json").out)["presets"]
    assert [preset["name"] for preset in found] == preset_names()
    for preset in found:
        assert preset["search"] == load_preset(preset["name"]).to_dict()["search"]
        assert preset["command"]
    (one,) = json.loads(bmnas_command("presets", "digits-quick", "--json").out)["presets"]
    assert one["name"] == "digits-quick"


def test_a_printed_preset_is_a_file_that_can_be_given_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for name in preset_names():
        printed = bmnas_command("presets", name)
        assert (printed.status, printed.err) == (0, "")
        path.write_text(printed.out)
        assert dataclasses.replace(load_preset(str(path)), preset=name) == load_preset(name)


def test_an_unknown_name_is_one_line() -> None:
    assert one_line_error(bmnas_command("presets", "quik")).endswith("; did you mean 'quick'?")
    message = one_line_error(bmnas_command("presets", "digit"))
    assert message.startswith("received preset 'digit', expected one of av-digits, digits-quick")
