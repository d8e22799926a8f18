"""The report: what it measures, what it concludes, and that the page holds all of it, escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.errors import CalibrationError, ConfigError, FlaxcleError
from flaxcle.jaxpr import trace
from flaxcle.paths import named_leaves, strip_collection
from flaxcle.quantize.plan import make_plan
from flaxcle.report import assets
from flaxcle.report.advice import advices
from flaxcle.report.answers import answers, best_row, noise_shares
from flaxcle.report.factors import scales_between
from flaxcle.report.gather import named_alike
from flaxcle.report.network import read_network
from flaxcle.report.page import render
from flaxcle.report.rails import Rails
from flaxcle.report.sides import with_sides
from flaxcle.tables import Table
from flaxcle.verify import Equivalence
from made_findings import NASTY, made_findings
from zoo import networks

VOID = {"meta", "input"}
MB = 1e6


class Outline(HTMLParser):
    """Elements in order; fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        place = self.open[-1] if self.open else ""
        self.text[place] = self.text.get(place, "") + data


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_findings())


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    return Outline(page)


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"]


def mlp_params() -> dict:
    rng = np.random.default_rng(0)
    spread = 2.0 ** rng.uniform(-4, 4, 8)
    first = {"kernel": rng.normal(size=(4, 8)) * spread, "bias": rng.normal(size=(1, 8)) * spread}
    second = {"kernel": rng.normal(size=(8, 3)) / spread[:, None]}
    return jax.tree.map(jnp.float32, {"first": first, "second": second})


X = jnp.asarray(np.random.default_rng(1).normal(size=(32, 4)), jnp.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    """The report of a real network, as a newcomer calls it."""
    params = mlp_params()
    equalized = fc.equalize(params, fc.find_spec(mlp, params, X))
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert fc.report(mlp, params, equalized, [X], path=path) == path
    return path.read_text(encoding="utf-8")


# The page


def test_page_is_well_formed_and_ids_are_unique(outline):
    assert len(outline.ids) == len(set(outline.ids))


def test_page_names_nothing_outside_of_itself(page):
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="(?!#|data:)', markup)
    assert "@import" not in page
    assert "url(" not in assets.own("style.css")


def test_every_text_is_escaped(page):
    assert NASTY not in page
    assert "&lt;/script&gt;&lt;b&gt;&amp;&#x27;&quot;" in page


def test_numbers_are_all_in_the_json(page):
    text = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page)[1]
    numbers = json.loads(text)
    found = made_findings()
    assert numbers["tables"]["headline"][1]["SQNR dB"] == 5.0
    assert numbers["tables"]["headline"][0]["SQNR dB"] is None  # infinite
    assert len(numbers["tables"]["ranges"]) == len(found.after.weights) + len(
        found.after.activations
    )
    assert {row["state"] for row in numbers["datasets"]["boxes"]} == {"before", "after"}


def test_charts_read_data_that_are_there(page):
    text = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page)[1]
    numbers = json.loads(text)
    assert {chart["data"]["name"] for chart in numbers["charts"].values()} <= set(
        numbers["datasets"]
    )


def test_charts_have_a_place_on_the_page(page, outline):
    text = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page)[1]
    assert set(json.loads(text)["charts"]) <= set(outline.ids)


def test_a_hundred_wide_layers_stay_small():
    assert len(render(made_findings(layers=120, channels=2048))) < 10 * MB


def test_missing_package_is_named(monkeypatch):
    with pytest.raises(
        FlaxcleError, match=r"'no_such_package' is not installed.*flaxcle\[report\]"
    ):
        assets._package("no_such_package")


# What is concluded


def texts(findings) -> dict[str, tuple[str, str]]:
    return {answer.question: (answer.verdict, answer.text) for answer in answers(findings)}


def test_answers_tell_what_the_tables_tell():
    found = texts(made_findings())
    verdict, text = found["Did it work?"]
    assert verdict == "fair"
    assert "97 %" in text
    assert "90 % in float, 70 % before, 89 % now" in text
    assert found["Is my function unchanged?"][0] == "good"
    assert "2.0e-07" in found["Is my function unchanged?"][1]
    assert "weights of block_0/conv" in found["Which layers still hurt?"][1]
    assert "gelu is not positively homogeneous" in found["What was blocked, and why?"][1]


def test_a_changed_function_is_the_first_thing_to_mend():
    findings = replace(made_findings(), unchanged=Equivalence(False, 1.0, 0.5, 1e-5))
    assert texts(findings)["Is my function unchanged?"][0] == "bad"
    assert next(advices(findings)).code.startswith("fc.check_spec")


@pytest.mark.parametrize(
    ("hint", "call"),
    [("fold", "fold_batch_norm"), ("clips", "expose_clips"), ("undeclared", "find_spec")],
)
def test_what_was_left_undone_is_advised(hint, call):
    findings = replace(made_findings(), hints=frozenset({hint}))
    assert call in next(advices(findings)).code


def test_limits_are_advised_with_what_helps():
    weights = {advice.code for advice in advices(made_findings())}
    assert any("per_channel" in code for code in weights)
    rows = tuple(
        (layer, {"weights": "activations", "activations": "weights"}.get(kind, kind), *rest)
        for layer, kind, *rest in made_findings().sensitivity.rows
    )
    turned = Table(made_findings().sensitivity.columns, rows)
    codes = {advice.code for advice in advices(replace(made_findings(), sensitivity=turned))}
    assert any("act_observer" in code for code in codes)


def test_noise_shares_add_up():
    shares = noise_shares(made_findings().sensitivity)
    assert sum(share for _, share in shares) == pytest.approx(100)
    assert [row["alone dB"] for row, _ in shares] == sorted(row["alone dB"] for row, _ in shares)


def test_a_loss_is_not_recommended():
    rows = (("float", float("inf")), ("int8", 30.0), ("after", 10.0), ("corrected", 20.0))
    findings = replace(made_findings(), headline=Table(("", "SQNR dB"), rows), hints=frozenset())
    assert texts(findings)["Did it work?"][0] == "bad"
    assert next(advices(findings)).text.startswith("Keep the params from before: they are 10.0 dB")


def test_a_better_row_is_recommended():
    rows = (("float", float("inf")), ("int8", 5.0), ("after", 10.0), ("corrected", 20.0))
    findings = replace(made_findings(), headline=Table(("", "SQNR dB"), rows), hints=frozenset())
    assert next(advices(findings)).text.startswith("Deploy \u201ccorrected\u201d")


def test_best_row_is_that_with_the_least_noise():
    rows = (("float", float("inf")), ("int8", 30.0), ("after", 10.0), ("corrected", 20.0))
    assert best_row(Table(("", "SQNR dB"), rows)) == 3


# The network


def nodes_of(name: str):
    network = networks()[name]()
    program = trace(network.fn, network.params, *network.inputs)
    return network, read_network(program, make_plan(program))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18_folded",
        "densenet",
        "unet",
        "gpt2",
        "moe",
        "siamese",
        "scan_stack",
        "cond_branches",
        "while_loop",
        "two_heads",
    ],
)
def test_every_node_is_reached_from_an_input(name):
    _, nodes = nodes_of(name)
    for number, node in enumerate(nodes):
        assert node.inputs or node.kind == "input", node
        assert all(source < number for source in node.inputs)


def test_residual_sums_have_two_inputs_and_chains_one():
    _, nodes = nodes_of("resnet18_folded")
    assert {len(node.inputs) for node in nodes if node.kind == "add"} == {2}
    assert {len(node.inputs) for node in nodes if node.leaf} == {1}
    assert len([node for node in nodes if node.kind == "add"]) == 8


def test_rails_draw_each_edge_once_and_never_two_on_one_lane():
    _, nodes = nodes_of("densenet")
    rails = Rails(nodes)
    for row in range(len(nodes)):
        passing = [s for s in rails.lanes if s < row < rails.last[s]]
        lanes = [rails.lanes[s] for s in passing]
        assert len(lanes) == len(set(lanes))
    joined = sum(len(node.inputs) for node in nodes)
    drawn = sum(
        len(list(rails._arriving(row))) // 2 + (row - 1 in nodes[row].inputs)
        for row in range(len(nodes))
    )
    assert drawn >= joined


def test_sides_tell_what_moves_and_what_is_blocked():
    network, nodes = nodes_of("mobilenetv2_folded")
    found = fc.find_spec(network.fn, network.params, *network.inputs)
    sided = {node.layer: node for node in with_sides(nodes, found, found)}
    assert sided["ConvNorm_0/Conv_0"].reads.state == "blocked"
    assert sided["ConvNorm_0/Conv_0"].makes.state == "scaled"
    assert (
        sided["Dense_0"].makes.reason
        == "it scales an output of the function, which must not change"
    )
    undeclared = with_sides(nodes, fc.Spec(), found)
    assert {n.makes.state for n in undeclared if n.makes} <= {"undeclared", "held", "blocked"}


@pytest.mark.parametrize(
    "name", ["resnet18_folded", "shufflenet", "llama_gqa", "flatten_legal", "grouped"]
)
def test_scales_are_read_off_the_leaves(name):
    network = networks()[name]()
    spec = fc.find_spec(network.fn, network.params, *network.inputs).select()
    rng = np.random.default_rng(0)
    log2 = {g.name: jnp.asarray(rng.uniform(-2, 2, g.shape), jnp.float32) for g in spec.groups}
    scales = fc.Scales(log2)
    moved = fc.apply_scales(network.params, scales, spec)
    old, new = (
        {path: np.asarray(leaf) for path, leaf in named(tree).items()}
        for tree in (network.params, moved)
    )
    found = scales_between(old, new, spec)
    known = {name: values for name, values in found.items() if np.isfinite(values).any()}
    assert len(known) >= len(spec.groups) / 2
    for group, values in known.items():
        wanted = np.asarray(scales[group]).ravel()
        seen = np.isfinite(values)
        np.testing.assert_allclose(values[seen], wanted[seen], rtol=1e-4)


def named(tree):
    return {strip_collection(path): leaf for path, leaf in named_leaves(tree).items()}


# From a network to a page


def test_report_of_a_network(written):
    outline = Outline(written)
    assert (
        "Yes. In float, outputs differ" in outline.text["p"] or "bit for bit" in outline.text["p"]
    )
    assert "int8, equalized" in outline.text["td"]
    assert "int8, biases corrected" in outline.text["td"]
    assert "first" in outline.text["a"]


def test_report_of_a_recipe(tmp_path):
    recipe = fc.quantize_recipe(mlp, mlp_params(), [X, X[::-1]], fc.QuantConfig())
    path = fc.report(mlp, mlp_params(), recipe, [X], path=tmp_path / "recipe.html")
    outline = Outline(path.read_text(encoding="utf-8"))
    assert "stages" in outline.ids
    assert "int8, the recipe" in outline.text["td"]


def test_names_of_before_follow_those_of_after():
    after = made_findings().after
    other = Table(
        after.activations.columns,
        tuple(("x", f"x{k}", *row[2:]) for k, row in enumerate(after.activations.rows)),
    )
    histograms = dict(
        zip(
            [*after.weights.column("name"), *other.column("name")],
            after.histograms.values(),
            strict=True,
        )
    )
    before = replace(after, activations=other, histograms=histograms)
    assert named_alike(before, after).activations.column("name") == after.activations.column("name")
    assert named_alike(before, after).histograms.keys() == after.histograms.keys()


def test_report_needs_a_batch():
    with pytest.raises(CalibrationError, match="a report needs at least one batch"):
        fc.report(mlp, mlp_params(), mlp_params(), [])


def test_labels_need_logits(tmp_path):
    def two(params, x):
        return mlp(params, x), x

    with pytest.raises(
        ConfigError, match="labels need a function that returns one array of logits"
    ):
        fc.report(
            two, mlp_params(), mlp_params(), [X], labels=np.zeros(32), path=tmp_path / "x.html"
        )
