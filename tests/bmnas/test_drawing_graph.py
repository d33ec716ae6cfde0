from __future__ import annotations

import random
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache
from itertools import combinations, pairwise, product
from pathlib import Path

import pytest
from tiny_runs import svg_texts

from bmnas.machine.errors import UserError
from bmnas.report.layout import Box, Layout, Wire
from bmnas.report.picture import architecture_part, draw_genotype
from bmnas.report.style import Part, drawing_style, figure_of, figure_svg, write_figure
from bmnas.report.text import description_text, genotype_text
from bmnas.spaces.cells.describe import describe_cells
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import PAPER
from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.registry import SPACES, describe

NAMES = ("image", "audio", "text", "imu")


def crosses_box(wire: Wire, box: Box) -> bool:
    """Whether a wire runs through the inside of a box; touching the edge is allowed."""
    return any(
        # A bend stays between the two points.
        max(ax, bx) > box.x + 1e-6
        and min(ax, bx) < box.x + box.width - 1e-6
        and max(ay, by) > box.y + 1e-6
        and min(ay, by) < box.y + box.height - 1e-6
        for (ax, ay), (bx, by) in pairwise(wire.points)
    )


def overlap(a: Box, b: Box) -> bool:
    aside = a.x + a.width <= b.x + 1e-6 or b.x + b.width <= a.x + 1e-6
    return not (aside or a.y + a.height <= b.y + 1e-6 or b.y + b.height <= a.y + 1e-6)


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


@cache
def drawn(genotype: Genotype) -> Layout:
    with drawing_style():
        return Layout(describe_cells(genotype))


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


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_no_wire_runs_through_a_box_and_none_overlaps_another(genotype: Genotype) -> None:
    drawing = drawn(genotype)
    boxes = list(drawing.boxes.values())
    assert not [(w, b) for w in drawing.wires for b in boxes if crosses_box(w, b)]
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    for wire, panel in product(drawing.wires, drawing.panels):
        if panel.title not in (wire.source.group, wire.target.group):
            assert not crosses_box(wire, panel.box)
    panels = [panel.box for panel in drawing.panels]
    assert not [pair for pair in combinations(panels, 2) if overlap(*pair)]


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_wires_of_different_sources_never_lie_on_each_other(genotype: Genotype) -> None:
    for a, b in combinations(drawn(genotype).wires, 2):
        if a.source == b.source:
            continue
        for (p, q), (r, s) in product(pairwise(a.points), pairwise(b.points)):
            for axis in (0, 1):
                along = 1 - axis
                same_way = abs(p[axis] - q[axis]) < 1e-6 and abs(r[axis] - s[axis]) < 1e-6
                if same_way and abs(p[axis] - r[axis]) < 0.02:
                    ends = min(max(p[along], q[along]), max(r[along], s[along]))
                    assert ends <= max(min(p[along], q[along]), min(r[along], s[along])) + 1e-6


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_everything_lies_on_the_picture_and_every_edge_is_drawn(genotype: Genotype) -> None:
    drawing, description = drawn(genotype), describe_cells(genotype)
    for box in (*drawing.boxes.values(), *(panel.box for panel in drawing.panels)):
        # Places are rounded to 1e-4 inches.
        assert -1e-3 < box.x < box.x + box.width < drawing.width + 1e-3
        assert -1e-3 < box.y < box.y + box.height < drawing.height + 1e-3
    for wire in drawing.wires:
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in wire.points)
    edges = {(source, node.name) for node in description.nodes for source in node.reads}
    assert {(wire.source.name, wire.target.name) for wire in drawing.wires} == edges
    assert list(drawing.boxes) == [node.name for node in description.nodes]


def test_operands_arrive_in_their_order(chain: Genotype) -> None:
    wires = {(w.source.name, w.target.name): w.points[-1] for w in drawn(chain).wires}
    for node in describe_cells(chain).nodes:
        if node.ordered:
            first, second = (wires[source, node.name] for source in node.reads)
            assert first[0] < second[0]


def test_features_that_nothing_reads_and_zero_steps_are_pale(chain: Genotype) -> None:
    pale = {node.label for node in describe_cells(chain).nodes if not node.live}
    assert pale == {"image.1", "Zero", "y"}  # y of the second Cell: only the zero step reads it


def test_svg_has_the_names_as_text_and_the_same_bytes_each_time(chain: Genotype) -> None:
    svg = figure_svg(draw_genotype(chain))
    assert svg == figure_svg(draw_genotype(chain))
    root = ElementTree.fromstring(svg)
    texts = {"".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {*chain.features, "Attention", "Linear GLU", "Concat FC", "Zero", "Cell 2"} <= texts
    assert "dc:date" not in svg


def test_drawing_ignores_the_settings_of_the_user(chain: Genotype) -> None:
    import matplotlib

    svg = figure_svg(draw_genotype(chain))
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "mine", "text.usetex": True}):
        assert figure_svg(draw_genotype(chain)) == svg


def test_figure_is_as_large_as_the_sheet(chain: Genotype) -> None:
    width, height = draw_genotype(chain).get_size_inches()
    assert 3 < width < 9
    assert 4 < height < 12


def test_long_names_are_cut() -> None:
    name = "audio." + "encoder.layer." * 20 + "dense"
    genotype = Genotype(
        ("image.1", name), 8, 4, (Cell(("image.1", name), (Step("sum", ("x", "y")),)),)
    )
    assert ">audio.encode…der.layer.dense<" in figure_svg(draw_genotype(genotype))


def test_a_picture_of_letters_that_no_font_here_has_is_drawn_without_a_word() -> None:
    """Warnings are errors in tests; the reader's fonts draw what the file says."""
    figure = figure_of(Part(2.0, 1.0, lambda row: row.text(0.5, 0.5, "東京 😀")))
    assert "東京 😀" in svg_texts(figure)


def test_more_than_a_picture_can_show_is_refused() -> None:
    steps = (Step("sum", ("x", "y")),) * 300
    genotype = Genotype(("a.1", "b.1"), 8, 4, (Cell(("a.1", "b.1"), steps),))
    with pytest.raises(UserError, match="received 306 nodes, expected at most 300"):
        draw_genotype(genotype)


def test_write_figure_leaves_nothing_for_an_unknown_suffix(chain: Genotype, tmp_path: Path) -> None:
    write_figure(draw_genotype(chain), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"received suffix '\.jpg', expected one of \.svg, \.png"):
        write_figure(draw_genotype(chain), tmp_path / "a.jpg")
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
        "├─ step1 = Attention(x, y)              query x; key, value y\n"
        "├─ step2 = Linear GLU(x, step1)         linear(x) * sigmoid(linear(step1))\n"
        "└─ cell1 = Add & Norm(x, step1, step2)  "
        "LayerNorm(x + ReLU(linear(concat(step1, step2))))\n"
        "\n"
        "Cell 2\n"
        "├─ x     = audio.1\n"
        "├─ y     = cell1                 not read\n"
        "├─ step1 = Zero(x, y)            dropped\n"
        "├─ step2 = Concat FC(step1, x)   ReLU(linear(concat(0, x)))\n"
        "└─ cell2 = Add & Norm(x, step2)  LayerNorm(x + ReLU(linear(concat(step2))))\n"
        "\n"
        "Classifier head  concat, LayerNorm, ReLU, flatten, linear → logits\n"
        "├─ cell1\n"
        "└─ cell2\n"
    )


def tree() -> Description:
    """Return a tree of a kind that no module of the report has heard of."""
    leaves = leaf_nodes(("image.1", "audio.2", "image.2", "audio.2", "image.1"))
    first, second, third, fourth, fifth = (leaf.name for leaf in leaves)
    inner = [
        Node("a", "add", reads=(first, second)),
        Node("b", "swirl", reads=(third, fourth)),
        Node("c", "mul", reads=("b", fifth)),
        Node("d", "concat + dense", "32 ReLU", reads=("a", "c")),
        Node("e", "Classifier", "linear", "output", reads=("d",)),
    ]
    features = ("image.1", "image.2", "audio.1", "audio.2")
    return Description("5 leaves", features, (*leaves, *inner))


def test_a_description_of_any_space_is_told_as_text() -> None:
    lines = description_text(tree()).splitlines()
    assert lines[0] == "5 leaves"
    assert lines[4].endswith("audio  (audio.1)  audio.2")
    assert lines[6:] == [
        "Classifier  linear → logits",
        "└─ concat + dense  32 ReLU",
        "   ├─ add",
        "   │  ├─ image.1",
        "   │  └─ audio.2",
        "   └─ mul",
        "      ├─ swirl",
        "      │  ├─ image.2",
        "      │  └─ audio.2",
        "      └─ image.1",
    ]


def test_a_tree_is_drawn_without_a_crossing() -> None:
    figure = figure_of(architecture_part(tree()))
    shown = svg_texts(figure)
    assert sorted(shown) == sorted(
        [
            *("image.1", "audio.2", "image.2", "audio.2", "image.1", "add", "swirl", "mul"),
            *("concat + dense", "32 ReLU", "Classifier", "linear", "logits"),
            "5 leaves  ·  not used: audio.1",
        ]
    )
    with drawing_style():
        wires = Layout(tree()).wires
    for a, b in combinations(wires, 2):
        for (p, q), (r, s) in product(pairwise(a.points), pairwise(b.points)):
            if max(p[1], r[1]) < min(q[1], s[1]) - 1e-6:
                assert (p[0] - r[0]) * (q[0] - s[0]) >= -1e-6, (a, b)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_drawn_and_told(name: str) -> None:
    features = ("image.1", "image.2", "audio.1", "audio.2")
    space = SPACES[name].of(features, {})
    for seed in range(3):
        genotype = space.sample(random.Random(seed))
        description = describe(genotype)
        shown = svg_texts(draw_genotype(genotype))
        assert {node.label for node in description.nodes} <= set(shown)
        assert genotype_text(genotype).startswith(description.summary)


def test_a_single_node_is_drawn_and_told() -> None:
    description = Description("GMU", (), (Node("fusion", "gmu", "hand-made fusion", "output"),))
    assert svg_texts(figure_of(architecture_part(description)))[:2] == ["gmu", "hand-made fusion"]
    assert description_text(description) == "GMU\n\ngmu  hand-made fusion → logits\n"


def test_a_description_checks_its_names() -> None:
    with pytest.raises(ValueError, match="node 'a': expected a name of its own"):
        Description("", ("x.1",), (Node("a", "A", reads=("b",)), Node("b", "B")))
