from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bmnas.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = typer.main.get_command(app)

LOGS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(bmnas [^`]+)`")
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def parse(line: str) -> None:
    """Read a command line as the program would, without running it; raises what it raises."""
    words = shlex.split(line, comments=True)
    # Up to where the shell takes over.
    words = list(itertools.takewhile(lambda word: word not in (">", ">>", "|", "&", "&&"), words))
    command: Any = PROGRAM
    context: Any = command.make_context(words[0], words[1:])
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)


def command_lines(page: Path) -> Iterator[str]:
    """Yield the command lines in the fenced blocks of a page, a prompt cut off."""
    for _, block in _FENCE.findall(page.read_text("utf-8")):
        joined = block.replace("\\\n", " ")
        for line in joined.splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("bmnas "):
                yield line


def named(page: Path) -> Iterator[str]:
    """Yield what a page says of commands between backquotes, where arguments may be left out."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    yield from (" ".join(found.split()) for found in _INLINE.findall(text))


def anchors(page: Path) -> set[str]:
    """Return what links to the headings of a page end in."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    titles = [re.sub(r"\]\([^)]*\)", "", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there."""
    found = []
    for file, heading in _LINK.findall(_FENCE.sub("", page.read_text("utf-8"))):
        there = page.parent / file if file else page
        if not there.exists() or (heading and heading not in anchors(there)):
            found.append(f"{file}#{heading}" if heading else file)
    return found


def commands(command: Any = PROGRAM, path: tuple[str, ...] = ("bmnas",)) -> Iterator[Any]:
    """Yield the words and the command of everything that can be run."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("page", [*PAGES, *LOGS, *ROOT.glob("C*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Of `two` words: `--x`\n")
    links = ["other.md", "other.md#of-two-words---x", "#none", "gone.md", "other.md#one"]
    page.write_text(" ".join(f"[a]({link})" for link in links) + " [b](https://example.org/#x)")
    assert broken_links(page) == ["#none", "gone.md", "other.md#one"]


def test_the_reader_of_pages_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`bmnas show`\n```sh\nbmnas search \\\n  --task x  # y\n$ bmnas serve b\n```\n")
    assert list(command_lines(page)) == ["bmnas search    --task x  # y", "bmnas serve b"]
    assert list(named(page)) == ["bmnas show"]
    for line in command_lines(page):
        parse(line)
    for wrong in (
        "bmnas serch --task digits",
        "bmnas search --tsk digits",
        "bmnas serve",
        "bmnas serve b --port http",
        "bmnas tabular build --what only",
    ):
        with pytest.raises(typer.exceptions.TyperException):
            parse(wrong)


@pytest.mark.parametrize(
    ("page", "line"),
    [(page.name, line) for page in PAGES for line in command_lines(page)],
)
def test_a_command_line_in_the_documents_is_one_that_the_program_takes(
    page: str, line: str
) -> None:
    parse(line)


@pytest.mark.parametrize(("page", "text"), [(p.name, text) for p in PAGES for text in named(p)])
def test_a_command_that_the_documents_name_is_there(page: str, text: str) -> None:
    words = text.split()
    found = [path for path in COMMANDS if path == tuple(words[: len(path)])]
    assert found or words == ["bmnas", "--help"], f"{page}: there is no command {text!r}"
    for path in found:
        options = {option for parameter in COMMANDS[path].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= {*options, "--help"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_ends_with_an_example_that_parses(path: tuple[str, ...]) -> None:
    text = COMMANDS[path].help
    assert text
    *_, example = text.split("Example: ")
    assert example.startswith(" ".join(path)), f"{path}: no example at the end of its help"
    parse(example)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_documents(path: tuple[str, ...]) -> None:
    pages = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert re.search(rf"\b{' '.join(path)}\b", pages), f"no page mentions {' '.join(path)}"


def test_the_map_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([\w./]+(?:\.py|/))`", page)) - {"bmnas/"}
    assert len(named) > 30
    places = (ROOT / "bmnas", ROOT, ROOT / "export", ROOT / "serve")
    for name in named:
        assert any((place / name).exists() for place in places), name
