"""`flaxcle` on the command line: what it prints and writes, what it refuses, its exit codes."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import flaxcle as fc
from flaxcle.cli import commands, main
from flaxcle.cli.arguments import parser

MODEL = """
import jax
import jax.numpy as jnp
import numpy as np

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def fn(params, x):
    p = params["params"]
    hidden = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"][None])
    return hidden @ p["b"]["kernel"] + p["skip"][None]


def network():
    return fn, (X,)


def one_input():
    return fn, X


def without_inputs():
    return lambda params: fn(params, jnp.asarray(X))


def broken():
    raise RuntimeError("no such weather")


def returns_text():
    return "fn"


number = 3
"""
BROKEN_IMPORT = "import a_package_that_is_not_there\n"
KINDS = ("model", "model.safetensors")
COMMANDS = ("spec", "equalize", "verify", "report")


def params(seed=0):
    draw = np.random.default_rng(seed).normal
    kernel = (draw(size=(4, 6)) * 4.0 ** np.arange(-3, 3)).astype(np.float32)
    return {
        "params": {
            "a": {"kernel": kernel, "bias": draw(size=6).astype(np.float32)},
            "b": {"kernel": draw(size=(6, 2)).astype(np.float32)},
            "skip": draw(size=2).astype(np.float32),
        }
    }


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The spec of the module `cli_mynet`, which is imported once for all tests."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "cli_mynet.py").write_text(MODEL, encoding="utf-8")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("cli_mynet")
    sys.path.remove(str(folder))
    return fc.find_spec(module.fn, params(), module.X)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, spec):
    """A working directory with a spec, a checkpoint and a module that can't be imported."""
    (tmp_path / "cli_broken.py").write_text(BROKEN_IMPORT, encoding="utf-8")
    (tmp_path / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # they make rich draw bars into files
        monkeypatch.delenv(name, raising=False)
    fc.save_checkpoint("model.safetensors", params(), metadata={"format": "pt"})
    return tmp_path


@pytest.fixture(params=KINDS)
def model(request):
    """The name of a checkpoint, of each kind."""
    if request.param == "model":
        fc.save_checkpoint("model", params(), metadata={"format": "pt"})
    return request.param


def named(name, model):
    """A name for another checkpoint of the same kind."""
    return model.replace("model", name)


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def flaxcle(capsys, *words):
    """Exit code, stdout and stderr of a command that must not print more than it says."""
    code = main([str(word) for word in words])
    return (code, *capsys.readouterr())


def refused(capsys, *words):
    """The one line that a command prints when it refuses."""
    code, out, err = flaxcle(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"flaxcle {words[0]}: ")
    assert err.count("\n") == 1
    return err


# spec


def test_spec_finds_shows_and_keeps(capsys, spec, model):
    words = ("spec", model, "--model", "cli_mynet:network", "--output", "found.json")
    assert flaxcle(capsys, *words) == (0, f"{spec}\n\nwrote found.json\n", "")
    assert Path("found.json").read_text("utf-8") == spec.to_json()


@pytest.mark.parametrize("function", ["one_input", "without_inputs"])
def test_a_model_may_leave_out_what_it_does_not_need(capsys, spec, function):
    words = ("spec", "model.safetensors", "--model", f"cli_mynet:{function}", "--output", "s.json")
    assert flaxcle(capsys, *words)[0] == 0
    found = fc.Spec.from_json(Path("s.json").read_text("utf-8"))
    assert [group.sites for group in found.groups] == [group.sites for group in spec.groups]


NNX_MODEL = """
import numpy as np
from flax import nnx

RNGS = nnx.Rngs(0)
MODEL = nnx.Sequential(nnx.Linear(3, 8, rngs=RNGS), nnx.relu, nnx.Linear(8, 2, rngs=RNGS))


def network():
    graph, _ = nnx.split(MODEL)

    def fn(params, x):
        return nnx.merge(graph, nnx.restore_int_paths(params))(x)

    return fn, (np.ones((4, 3), np.float32),)
"""


@pytest.mark.parametrize("name", KINDS)
def test_an_nnx_model_is_put_together_from_its_checkpoint(capsys, here, name):
    (here / "cli_nnx.py").write_text(NNX_MODEL, encoding="utf-8")
    importlib.invalidate_caches()
    sys.path.insert(0, str(here))
    model = importlib.import_module("cli_nnx").MODEL
    fc.save_checkpoint(named("nnx", name), nnx.state(model))
    words = (named("nnx", name), named("out", name))
    assert (
        flaxcle(capsys, "equalize", *words, "--model", "cli_nnx:network", "--power-of-two")[0] == 0
    )
    told = "equivalent: all outputs are the same bit for bit\n"
    assert flaxcle(capsys, "verify", *words, "--model", "cli_nnx:network") == (0, told, "")


def test_the_module_is_found_in_the_working_directory(capsys, here):
    (here / "cli_only_here.py").write_text("from cli_mynet import network\n", encoding="utf-8")
    importlib.invalidate_caches()
    words = ("spec", "model.safetensors", "--model", "cli_only_here:network")
    assert flaxcle(capsys, *words)[0] == 0


def test_spec_shows_the_stored_one(capsys, spec):
    fc.save_checkpoint("with.safetensors", params(), spec=spec)
    assert flaxcle(capsys, "spec", "with.safetensors") == (0, f"{spec}\n", "")


def test_spec_checks_a_file_against_shapes_and_function(capsys, spec):
    words = ("spec", "model.safetensors", "--spec", "spec.json", "--model", "cli_mynet:network")
    assert flaxcle(capsys, *words)[0] == 0
    without_bias = spec.to_json().replace(
        '{"path": "params/a/bias", "axes": [0], "power": "1"},\n', ""
    )
    assert without_bias != spec.to_json()
    Path("spec.json").write_text(without_bias, encoding="utf-8")
    assert flaxcle(capsys, *words[:4])[0] == 0
    assert "the spec would change the function: 'a/bias'" in refused(capsys, *words)
    Path("spec.json").write_text(spec.to_json().replace("a/bias", "a/beas"), encoding="utf-8")
    assert "the spec scales 'params/a/beas', which the tree does not" in refused(capsys, *words[:4])


# equalize


@pytest.mark.parametrize("source", ["--spec=spec.json", "--model=cli_mynet:network"])
def test_equalize_writes_what_the_library_computes(capsys, spec, model, source):
    out = named("out", model)
    code, told, err = flaxcle(capsys, "equalize", model, out, source)
    assert (code, err) == (0, "")
    found = fc.load_checkpoint(out)
    largest = float(np.max(np.abs(found.scales.log2["a -> b"])))
    assert told == f"wrote {out}: 6 of 6 scales moved, by factors of up to 2^{largest:.1f}\n"
    assert_same(found.params, fc.equalize(params(), spec))
    assert_same(found.scales.log2, fc.solve(params(), spec).log2)
    assert found.spec == spec
    assert found.metadata == {"format": "pt"}


def test_equalize_converts_by_the_name_of_the_output(capsys):
    assert flaxcle(capsys, "equalize", "model.safetensors", "out", "--spec", "spec.json")[0] == 0
    assert Path("out").is_dir()
    words = ("equalize", "out", "back.safetensors", "--undo")
    assert flaxcle(capsys, *words)[0] == 0
    np.testing.assert_allclose(
        fc.load_checkpoint("back.safetensors").params["params"]["a"]["kernel"],
        params()["params"]["a"]["kernel"],
        rtol=2**-21,
    )


def test_undo_restores_every_bit_after_powers_of_two(capsys, model):
    out, back = named("out", model), named("back", model)
    words = ("equalize", model, out, "--spec", "spec.json", "--power-of-two")
    assert flaxcle(capsys, *words)[0] == 0
    assert np.any(fc.load_checkpoint(out).params["params"]["a"]["kernel"] != 0)
    assert flaxcle(capsys, "equalize", out, back, "--undo") == (
        0,
        f"wrote {back}: the weights before equalization\n",
        "",
    )
    found = fc.load_checkpoint(back)
    assert_same(found.params, params())
    assert (found.spec, found.scales, found.metadata) == (None, None, {"format": "pt"})


def test_equalize_in_place_needs_force(capsys, model):
    words = ("equalize", model, model, "--spec", "spec.json")
    assert "won't overwrite what is there" in refused(capsys, *words)
    assert_same(fc.load_checkpoint(model).params, params())
    assert flaxcle(capsys, *words, "--force")[0] == 0
    assert fc.load_checkpoint(model).scales is not None
    assert "the checkpoint is equalized already" in refused(capsys, *words, "--force")


def test_force_is_asked_before_any_work(capsys, monkeypatch):
    monkeypatch.setattr(commands, "load_checkpoint", lambda path: pytest.fail("it was read"))
    Path("there.json").touch()
    words = ("equalize", "model.safetensors", "model.safetensors", "--model", "cli_mynet:network")
    assert "--force on the command line" in refused(capsys, *words)
    words = ("spec", "model.safetensors", "--model", "cli_mynet:network", "--output", "there.json")
    assert "won't overwrite what is there" in refused(capsys, *words)
    assert Path("there.json").read_text("utf-8") == ""


def test_force_replaces_a_spec(capsys, spec):
    Path("there.json").touch()
    words = ("spec", "model.safetensors", "--spec", "spec.json", "--output", "there.json")
    assert flaxcle(capsys, *words, "--force")[0] == 0
    assert Path("there.json").read_text("utf-8") == spec.to_json()


def test_leaves_that_mirror_scaled_ones_are_named(capsys):
    tree = params() | {"opt_state": [{"mu": params()["params"]}], "step": np.asarray(3)}
    fc.save_checkpoint("train", tree)
    code, _, err = flaxcle(capsys, "equalize", "train", "out", "--spec", "spec.json")
    assert code == 0
    assert err.startswith("note: 'opt_state/0/mu/a/bias' and 2 more mirror scaled leaves")
    assert_same(fc.load_checkpoint("out").params["opt_state"], tree["opt_state"])


def test_float64_is_not_narrowed(capsys):
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params())
    fc.save_checkpoint("wide.safetensors", wide)
    words = ("equalize", "wide.safetensors", "out.safetensors", "--spec", "spec.json")
    assert "set the environment variable JAX_ENABLE_X64=1" in refused(capsys, *words)


# verify


@pytest.fixture
def equalized(capsys, model):
    out = named("out", model)
    assert flaxcle(capsys, "equalize", model, out, "--spec", "spec.json", "--power-of-two")[0] == 0
    return out


def test_verify_by_outputs_and_by_scales(capsys, model, equalized):
    words = ("verify", model, equalized)
    assert flaxcle(capsys, *words, "--model", "cli_mynet:network") == (
        0,
        "equivalent: all outputs are the same bit for bit\n",
        "",
    )
    told = "equivalent: the weights differ by the stored scales alone\n"
    assert flaxcle(capsys, *words) == (0, told, "")
    assert flaxcle(capsys, "verify", equalized, model) == (0, told, "")


def spoiled(path, leaf, factor):
    """The checkpoint with one leaf changed."""
    found = fc.load_checkpoint(path)
    group = found.params["params"]
    inner = group[leaf] if isinstance(group[leaf], dict) else group
    name = "kernel" if inner is not group else leaf
    inner[name] = inner[name] * np.float32(factor)
    beside = {"spec": found.spec, "scales": found.scales}
    fc.save_checkpoint(path, found.params, **beside, overwrite=True)


@pytest.mark.parametrize(
    ("leaf", "factor"), [("a", 1.01), ("b", -1.0), ("skip", 1 + 2**-23), ("skip", np.nan)]
)
def test_verify_by_scales_sees_any_other_change(capsys, leaf, factor):
    words = ("equalize", "model.safetensors", "out.safetensors", "--spec", "spec.json")
    assert flaxcle(capsys, *words)[0] == 0
    assert flaxcle(capsys, "verify", "model.safetensors", "out.safetensors")[0] == 0
    spoiled("out.safetensors", leaf, factor)
    code, out, _ = flaxcle(capsys, "verify", "model.safetensors", "out.safetensors")
    name = "params/skip" if leaf == "skip" else f"params/{leaf}/kernel"
    assert code == 1
    assert out == (f"NOT equivalent: the stored scales do not explain {name!r}\n")


def test_verify_by_outputs_says_how_far_they_differ(capsys):
    words = ("equalize", "model.safetensors", "out.safetensors", "--spec", "spec.json")
    assert flaxcle(capsys, *words)[0] == 0
    words = ("verify", "model.safetensors", "out.safetensors", "--model", "cli_mynet:network")
    code, out, _ = flaxcle(capsys, *words)
    assert code == 0
    assert out.startswith("equivalent: ")
    spoiled("out.safetensors", "b", 1.5)
    code, out, _ = flaxcle(capsys, *words)
    assert code == 1
    assert out.startswith("NOT equivalent: outputs differ by 0.")
    assert out.endswith("of the largest one; rounding explains 3.1e-05\n")


def test_verify_without_a_network_needs_scales_in_one(capsys):
    words = ("verify", "model.safetensors", "model.safetensors")
    assert "exactly one of the checkpoints must hold scales: neither does" in refused(
        capsys, *words
    )


def test_verify_of_two_networks_is_refused(capsys, equalized):
    tree = params()
    del tree["params"]["skip"]
    fc.save_checkpoint("other.safetensors", tree)
    told = refused(capsys, "verify", "other.safetensors", equalized)
    assert "name, shape or dtype differ, first of 'params/skip'" in told


# report


def test_report_of_an_equalized_checkpoint_is_that_of_the_plain_one(capsys, spec):
    words = ("equalize", "model.safetensors", "out.safetensors", "--spec", "spec.json")
    assert flaxcle(capsys, *words)[0] == 0
    code, told, err = flaxcle(capsys, "report", "out.safetensors", "--json")
    assert (code, err) == (0, "")
    refused(capsys, "report", "out.safetensors", "--spec", "spec.json")
    found = json.loads(told)
    words = ("report", "model.safetensors", "--spec", "spec.json", "--json")
    planned = json.loads(flaxcle(capsys, *words)[1])
    assert found["groups"] == planned["groups"]
    assert [row["layer"] for row in found["layers"]] == ["a/kernel", "b/kernel"]
    for row, plan in zip(found["layers"], planned["layers"], strict=True):
        assert row["shape"] == plan["shape"]
        for key in row.keys() - {"layer", "shape"}:
            assert row[key] == pytest.approx(plan[key], rel=1e-5)


def test_report_numbers_are_those_of_the_weights(capsys, spec):
    words = ("report", "model.safetensors", "--spec", "spec.json", "--json")
    first = json.loads(flaxcle(capsys, *words)[1])["layers"][0]
    old, new = (p["params"]["a"]["kernel"] for p in (params(), fc.equalize(params(), spec)))
    for when, kernel in (("", old), (" after", np.asarray(new))):
        channels = np.abs(kernel).max(axis=0)
        step = np.abs(kernel).max() / 127
        signal, noise = kernel, kernel - np.round(kernel / step) * step
        assert first[f"max |w|{when}"] == pytest.approx(channels.max(), rel=1e-6)
        assert first[f"spread{when}"] == pytest.approx(channels.max() / np.median(channels), 1e-6)
        ratios = 10 * np.log10(np.sum(signal**2, axis=0) / np.sum(noise**2, axis=0))
        assert first[f"dB{when}"] == pytest.approx(ratios.mean(), rel=1e-3)
    assert first["dB after"] > first["dB"] + 6


def test_report_prints_two_tables(capsys):
    code, out, _ = flaxcle(capsys, "report", "model.safetensors", "--spec", "spec.json")
    layers, groups = out.split("\n\n")
    assert code == 0
    assert layers.splitlines()[0].split("  ")[0] == "layer"
    assert groups.splitlines()[0].split() == ["group", "scales", "smallest", "largest", "at", "1"]
    assert groups.splitlines()[1].startswith("a -> b")


def test_report_writes_the_page_of_the_library(capsys):
    words = ("equalize", "model.safetensors", "out.safetensors", "--spec", "spec.json")
    assert flaxcle(capsys, *words)[0] == 0
    words = ("report", "out.safetensors", "--html", "page.html")
    assert "pass --model MODULE:FUNCTION, too" in refused(capsys, *words)
    words = (*words, "--model", "cli_mynet:network")
    assert flaxcle(capsys, *words)[0] == 0
    assert "a/kernel" in Path("page.html").read_text("utf-8")
    assert "won't overwrite what is there" in refused(capsys, *words)
    assert flaxcle(capsys, *words, "--force")[0] == 0


def test_report_of_a_zero_layer_is_still_json(capsys):
    tree = params()
    tree["params"]["b"]["kernel"] *= 0
    fc.save_checkpoint("zero.safetensors", tree)
    words = ("report", "zero.safetensors", "--spec", "spec.json", "--json")
    row = json.loads(flaxcle(capsys, *words)[1])["layers"][1]
    assert (row["max |w|"], row["spread"], row["dB"]) == (0.0, None, None)


# what is refused, and exit codes


REFUSED = {
    "no checkpoint": (["spec", "nothing.safetensors"], "there is no checkpoint"),
    "no spec": (["spec", "model.safetensors"], "pass --model MODULE:FUNCTION to find it"),
    "no spec file": (["report", "model.safetensors", "--spec", "no.json"], "No such file"),
    "spec is no JSON": (
        ["report", "model.safetensors", "--spec", "cli_broken.py"],
        "the text of a spec is not JSON",
    ),
    "no colon": (["spec", "model.safetensors", "--model", "mynet"], "write it as module:function"),
    "no module": (
        ["spec", "model.safetensors", "--model", "no_such.net:f"],
        "no module is called 'no_such.net'",
    ),
    "no function": (
        ["spec", "model.safetensors", "--model", "cli_mynet:net"],
        "no function is called 'net': module 'cli_mynet'",
    ),
    "a number": (["spec", "model.safetensors", "--model", "cli_mynet:number"], "no function is"),
    "returns text": (
        ["spec", "model.safetensors", "--model", "cli_mynet:returns_text"],
        "'cli_mynet:returns_text' returns str. What to do: let it return (fn, inputs)",
    ),
    "nothing to undo": (
        ["equalize", "model.safetensors", "out.safetensors", "--undo"],
        "the checkpoint holds no scales that could be undone",
    ),
    "undo with a spec": (
        ["equalize", "a", "b", "--undo", "--spec", "spec.json", "--power-of-two"],
        "the checkpoint are used: a. What to do: leave out --spec and --power-of-two",
    ),
    "a directory in the way": (
        ["equalize", "model.safetensors", ".", "--spec", "spec.json", "--force"],
        "won't replace what is no orbax checkpoint",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(capsys, here, case):
    words, message = REFUSED[case]
    before = sorted(os.listdir(here))
    assert message in refused(capsys, *words)
    assert sorted(set(os.listdir(here)) - {"__pycache__"}) == sorted(set(before) - {"__pycache__"})


@pytest.mark.parametrize(
    ("reference", "last"),
    [
        ("cli_mynet:broken", "RuntimeError: no such weather"),
        (
            "cli_broken:network",
            "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
        ),
    ],
)
def test_what_the_model_raises_is_shown_with_exit_code_3(capsys, reference, last):
    importlib.invalidate_caches()
    code, out, err = flaxcle(capsys, "spec", "model.safetensors", "--model", reference)
    assert (code, out) == (3, "")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1] == last


def test_an_interrupt_replaces_nothing_and_has_exit_code_130(capsys, here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "solve", interrupted)
    words = ("equalize", "model.safetensors", "model.safetensors", "--spec", "spec.json", "--force")
    told = "flaxcle equalize: interrupted\n"
    assert flaxcle(capsys, *words) == (130, "", told)
    assert_same(fc.load_checkpoint("model.safetensors").params, params())


@pytest.mark.parametrize("words", [[], ["equalise"], ["equalize", "a"], ["spec", "a", "--nope"]])
def test_bad_usage_shows_the_usage_and_exits_with_2(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: flaxcle")


# help and progress


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_teaches_the_commands_and_exit_codes(capsys):
    told = help_of(capsys)
    for name in COMMANDS:
        assert f"\n    {name} " in told
        assert f"\n  flaxcle {name} " in told or name == "verify"
    assert all(f"\n  {code}  " in told for code in (0, 1, 2, 3, 130))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_of_the_help_can_be_typed(capsys, command):
    told = help_of(capsys, *command.split())
    lines = [line.strip() for line in told.splitlines() if line.startswith("  flaxcle ")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])[1:]
        assert parser().parse_args(words).command == (command or words[0])
    assert "exit codes:" in told
    assert (not command) or "def network():" in told


def test_progress_is_shown_on_a_terminal_alone_and_on_stderr(capsys, monkeypatch):
    words = ("report", "model.safetensors", "--spec", "spec.json")
    quiet = flaxcle(capsys, *words)
    assert quiet[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = flaxcle(capsys, *words)
    assert shown[:2] == quiet[:2]
    assert "measuring" in shown[2]


@pytest.mark.parametrize(
    ("module", "extra"), [("rich.console", "cli"), ("safetensors", "checkpoint")]
)
def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    told = refused(capsys, "report", "model.safetensors", "--spec", "spec.json")
    assert f"pip install 'flaxcle[{extra}]'" in told


def test_the_installed_script_is_this_function():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    module, _, name = tomllib.loads(text)["project"]["scripts"]["flaxcle"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
