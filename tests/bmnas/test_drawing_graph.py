from __future__ import annotations

import random
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from bmnas.machine.errors import UserError
from bmnas.report import architecture_svg, draw_genotype, genotype_text, write_architecture
from bmnas.report.geometry import Box, Sheet, Wire, crossings, junctions
from bmnas.report.layout import layout
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import PAPER

NAMES = ("image", "audio", "text", "imu")


def crosses_box(wire: Wire, box: Box) -> bool:
    """Whether a wire runs through the inside of a box; touching the edge is allowed."""
    return any(
        max(ax, bx) > box.x + 1e-9
        and min(ax, bx) < box.x + box.width - 1e-9
        and max(ay, by) > box.y + 1e-9
        and min(ay, by) < box.y + box.height - 1e-9
        for (ax, ay), (bx, by) in wire.segments()
    )


def random_genotype(seed: int, cells: int, steps: int, modalities: int, each: int) -> Genotype:
    rng = random.Random(seed)
    features = [f"{name}.{f + 1}" for name in NAMES[:modalities] for f in range(each)]
    nodes, taken, made = list(features), set(), []
    for k in range(cells):
        pairs = [p for p in combinations(nodes, 2) if not taken.issuperset(p)]
        # The later half, so that Cells that take Cells are common.
        pair = rng.choice(pairs[len(pairs) // 2 :])
        inner, chain = ["x", "y"], []
        for m in range(steps):
            first, second = rng.sample(inner, 2)
            chain.append(Step(rng.choice(PAPER), (first, second)))
            inner.append(f"step{m + 1}")
        taken.update(pair)
        made.append(Cell(pair, tuple(chain)))
        nodes.append(f"cell{k + 1}")
    return Genotype(tuple(features), 64, 8, tuple(made))


def wide(text: str, size: float) -> float:
    return len(text) * size * 0.8 / 72


GENOTYPES = [
    pytest.param(
        random_genotype(100 * n + 10 * m + seed, n, m, 2 + seed % 3, 1 + seed),
        id=f"{n}-cells-{m}-steps-{seed}",
    )
    for n in range(1, 5)
    for m in range(1, 4)
    for seed in range(4)
]


@pytest.fixture
def chain() -> Genotype:
    features = ("image.1", "image.2", "audio.1", "audio.2")
    first = (Step("attention", ("x", "y")), Step("linear_glu", ("x", "step1")))
    second = (Step("zero", ("x", "y")), Step("concat_fc", ("step1", "x")))
    cells = (Cell(("image.2", "audio.2"), first), Cell(("audio.1", "cell1"), second))
    return Genotype(features, 64, 8, cells)


def solid(sheet: Sheet) -> Iterator[Box]:
    return (box for box in sheet.boxes if box.kind not in ("group", "cell"))


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_no_wire_runs_through_a_box(genotype: Genotype) -> None:
    sheet = layout(genotype, wide)
    for wire in sheet.wires:
        for box in solid(sheet):
            assert not crosses_box(wire, box), (wire, box)


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_no_two_boxes_and_no_text_overlap(genotype: Genotype) -> None:
    sheet = layout(genotype, wide)
    places = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in solid(sheet)]
    for label in sheet.labels:
        # Operand letters stand inside their step on purpose.
        if label.text in ("x", "y"):
            continue
        width, height = wide(label.text, label.size), label.size / 72
        left = label.x - {"left": 0.0, "center": 0.5, "right": 1.0}[label.align] * width
        places.append((left, label.y - height / 2, left + width, label.y + height / 2))
    for a, b in combinations(places, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (a, b)


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_wires_of_different_sources_never_lie_on_each_other(genotype: Genotype) -> None:
    sheet = layout(genotype, wide)
    outside = {*genotype.features, *(f"cell{k}" for k in range(1, 5))}
    wires = [wire for wire in sheet.wires if wire.net in outside]
    for a, b in combinations(wires, 2):
        if a.net == b.net:
            continue
        for (p, q), (r, s) in ((i, j) for i in a.segments() for j in b.segments()):
            for axis in (0, 1):
                if abs(p[axis] - q[axis]) < 1e-6 and abs(r[axis] - s[axis]) < 1e-6:
                    across = 1 - axis
                    overlap = min(max(p[across], q[across]), max(r[across], s[across])) - max(
                        min(p[across], q[across]), min(r[across], s[across])
                    )
                    assert overlap <= 1e-6 or abs(p[axis] - r[axis]) > 0.02, (a, b)


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_everything_lies_on_the_sheet_and_every_edge_is_drawn(genotype: Genotype) -> None:
    sheet = layout(genotype, wide)
    for box in sheet.boxes:
        assert 0 <= box.x < box.x + box.width <= sheet.width
        assert 0 <= box.y < box.y + box.height <= sheet.height
    for wire in sheet.wires:
        assert all(0 <= x <= sheet.width and 0 <= y <= sheet.height for x, y in wire.points)
    drawn = {name: sum(w.net == name for w in sheet.wires) for name in genotype.features}
    taken = [name for cell in genotype.cells for name in cell.inputs]
    assert drawn == {name: taken.count(name) for name in genotype.features}
    into_head = {w.net for w in sheet.wires if w.net.startswith("cell")}
    assert into_head == {f"cell{k + 1}" for k in range(len(genotype.cells))}


def test_features_that_nothing_reads_and_zero_steps_are_pale(chain: Genotype) -> None:
    sheet = layout(chain, wide)
    pale = {box.label for box in sheet.boxes if box.pale}
    assert pale == {"image.1", "Zero", "y"}  # y of the second Cell: only the zero step reads it


def test_crossings_counts_meetings_of_different_nets_only() -> None:
    across = Wire("a", ((0, 1), (2, 1)), "#000000")
    up = Wire("b", ((1, 0), (1, 2)), "#000000")
    assert crossings([across, up]) == 1
    assert crossings([across, Wire("a", up.points, "#000000")]) == 0
    assert crossings([across, Wire("b", ((0, 2), (2, 2)), "#000000")]) == 0


def test_junctions_are_where_a_wire_leaves_another_of_its_net() -> None:
    trunk = Wire("a", ((0, 0), (4, 0)), "#000000")
    branch = Wire("a", ((0, 0), (2, 0), (2, 3)), "#000000")
    assert junctions([trunk, branch]) == [((2, 0), "#000000")]
    fork = Wire("a", ((0, 0), (2, 0), (2, -3)), "#000000")
    assert junctions([branch, fork]) == [((2, 0), "#000000")]
    assert junctions([trunk, Wire("b", branch.points, "#000000")]) == []


def test_svg_has_the_names_as_text_and_the_same_bytes_each_time(chain: Genotype) -> None:
    svg = architecture_svg(chain)
    assert svg == architecture_svg(chain)
    root = ElementTree.fromstring(svg)
    texts = {"".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {*chain.features, "Attention", "Linear GLU", "Concat FC", "Zero", "Cell 2"} <= texts
    assert "dc:date" not in svg


def test_drawing_ignores_the_settings_of_the_user(chain: Genotype) -> None:
    import matplotlib

    svg = architecture_svg(chain)
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "mine", "text.usetex": True}):
        assert architecture_svg(chain) == svg


def test_figure_is_as_large_as_the_sheet(chain: Genotype) -> None:
    width, height = draw_genotype(chain).get_size_inches()
    assert 4 < width < 9
    assert 4 < height < 9


def test_long_names_are_cut() -> None:
    name = "audio." + "encoder.layer." * 20 + "dense"
    genotype = Genotype(
        ("image.1", name), 8, 4, (Cell(("image.1", name), (Step("sum", ("x", "y")),)),)
    )
    sheet = layout(genotype, wide)
    label = next(b.label for b in sheet.boxes if b.label.startswith("audio."))
    assert len(label) == 28
    assert "…" in label


def test_more_than_a_picture_can_show_is_refused() -> None:
    steps = (Step("sum", ("x", "y")),) * 17
    genotype = Genotype(("a.1", "b.1"), 8, 4, (Cell(("a.1", "b.1"), steps),))
    with pytest.raises(UserError, match="received 17 steps in a Cell, expected at most 16"):
        draw_genotype(genotype)


def test_write_architecture_leaves_nothing_for_an_unknown_suffix(
    chain: Genotype, tmp_path: Path
) -> None:
    write_architecture(chain, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"received suffix '\.jpg', expected \.svg or \.png"):
        write_architecture(chain, tmp_path / "a.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_missing_matplotlib_names_the_extra(
    chain: Genotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "matplotlib":
                raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(UserError, match=r"drawing needs matplotlib: pip install 'bmnas\[search\]'"):
        draw_genotype(chain)


def test_text_shows_features_cells_and_head(chain: Genotype) -> None:
    assert genotype_text(chain) == (
        "2 Cells, C = 64 channels, L = 8 positions\n"
        "\n"
        "Features  (in parentheses: not used)\n"
        "├─ image  (image.1)  image.2\n"
        "└─ audio  audio.1  audio.2\n"
        "\n"
        "Cell 1\n"
        "├─ x     = image.2\n"
        "├─ y     = audio.2\n"
        "├─ step1 = Attention(x, y)       query x; key, value y\n"
        "├─ step2 = Linear GLU(x, step1)  linear(x) * sigmoid(linear(step1))\n"
        "└─ cell1 = LayerNorm(x + ReLU(linear(concat(step1, step2))))\n"
        "\n"
        "Cell 2\n"
        "├─ x     = audio.1\n"
        "├─ y     = cell1                not read\n"
        "├─ step1 = Zero(x, y)           dropped\n"
        "├─ step2 = Concat FC(step1, x)  ReLU(linear(concat(0, x)))\n"
        "└─ cell2 = LayerNorm(x + ReLU(linear(concat(step2))))\n"
        "\n"
        "Head\n"
        "└─ concat(cell1, cell2) → LayerNorm → ReLU → flatten → linear → logits\n"
    )
