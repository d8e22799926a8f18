"""The subcommands: each reads checkpoints, calls the library, prints or writes one result.

A command returns whether all is well; only `verify` may say no. The invariant: nothing is written
before everything is computed, and nothing that is there is replaced without `--force`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxcle.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaxcle.checkpoint.files import check_target
from flaxcle.checkpoint.replace import check_free, replacing
from flaxcle.cli.effect import group_table, layer_table
from flaxcle.cli.model import load_model
from flaxcle.cli.progress import Step, progress
from flaxcle.cli.weights import mirrors, rescaled, unexplained
from flaxcle.discover import check_spec, find_spec
from flaxcle.errors import CheckpointError, ConfigError
from flaxcle.report import report as write_page
from flaxcle.solve import solve
from flaxcle.spec import Scales, Spec, check_fit
from flaxcle.verify import verify as verify_outputs


def show_spec(arguments: Namespace) -> bool:
    """`flaxcle spec`."""
    output = Path(arguments.output) if arguments.output else None
    if output:
        check_free(output, arguments.force)
    with progress(2) as step:
        step(f"reading {arguments.checkpoint}")
        spec = _spec(arguments, load_checkpoint(arguments.checkpoint), step)
    _say(str(spec))
    if output:
        with replacing(output, overwrite=arguments.force) as new:
            new.write_text(spec.to_json(), encoding="utf-8")
        _say(f"\nwrote {output}")
    return True


def equalize(arguments: Namespace) -> bool:
    """`flaxcle equalize`."""
    if arguments.undo:
        _refuse_options(arguments, "spec", "model", "power_of_two")
    check_target(Path(arguments.output), arguments.force)
    with progress(4) as step:
        step(f"reading {arguments.checkpoint}")
        source = load_checkpoint(arguments.checkpoint)
        result = _undone(source, step) if arguments.undo else _balanced(source, arguments, step)
        step(f"writing {arguments.output}")
        save_checkpoint(
            arguments.output,
            result.params,
            spec=result.spec,
            scales=result.scales,
            metadata=result.metadata,
            overwrite=arguments.force,
        )
    _say(_summary(result, arguments.output))
    return True


def verify(arguments: Namespace) -> bool:
    """`flaxcle verify`."""
    with progress(2) as step:
        step("reading")
        before, after = (load_checkpoint(path) for path in (arguments.before, arguments.after))
        step("comparing")
        if arguments.model:
            same, text = _by_outputs(arguments.model, before, after)
        else:
            same, text = _by_scales(before, after)
    _say(f"{'equivalent' if same else 'NOT equivalent'}: {text}")
    return same


def report(arguments: Namespace) -> bool:
    """`flaxcle report`."""
    html = _html(arguments)
    with progress(4) as step:
        step(f"reading {arguments.checkpoint}")
        source = load_checkpoint(arguments.checkpoint)
        if source.scales is None:
            spec = _spec(arguments, source, step)
            scales = solve(source.params, spec)
            before, after = source.params, rescaled(source.params, scales, spec)
        else:
            _refuse_options(arguments, "spec", *([] if html else ["model"]))
            scales, spec = _stored(source)
            before, after = rescaled(source.params, scales, spec, inverse=True), source.params
        step("measuring")
        layers, groups = layer_table(before, after, spec), group_table(scales, spec)
        if html:
            step("running the network")
            model = load_model(arguments.model)
            with replacing(html, overwrite=arguments.force) as new:
                write_page(model.fn, before, after, [model.inputs], spec=spec, path=new)
    if arguments.json:
        _say(json.dumps({"layers": list(layers), "groups": list(groups)}, indent=1))
    else:
        _say(f"{layers}\n\n{groups}")
    return True


def _html(arguments: Namespace) -> Path | None:
    """Where the page goes, if there is to be one."""
    if not arguments.html:
        return None
    if not arguments.model:
        raise ConfigError("the page runs the network", then="pass --model MODULE:FUNCTION, too")
    check_free(Path(arguments.html), arguments.force)
    return Path(arguments.html)


def _refuse_options(arguments: Namespace, *names: str) -> None:
    """Where stored scales are used, nothing else can decide."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    if given:
        raise ConfigError(
            "the spec and the scales that are stored in the checkpoint are used",
            where=arguments.checkpoint,
            then=f"leave out {' and '.join(given)}",
        )


def _spec(arguments: Namespace, source: Checkpoint, step: Step) -> Spec:
    """The spec of the file, of the network, or of the checkpoint, whichever is named first."""
    if arguments.spec:
        spec = Spec.from_json(Path(arguments.spec).read_text(encoding="utf-8"))
        check_fit(spec, source.params)
        if arguments.model:
            step("checking the spec")
            model = load_model(arguments.model)
            check_spec(model.fn, source.params, spec, *model.inputs)
        return spec
    if arguments.model:
        step("finding the spec")
        model = load_model(arguments.model)
        return find_spec(model.fn, source.params, *model.inputs)
    if source.spec is None:
        raise ConfigError(
            "there is no spec: the checkpoint has none",
            then="pass --model MODULE:FUNCTION to find it, or --spec FILE",
        )
    return source.spec


def _balanced(source: Checkpoint, arguments: Namespace, step: Step) -> Checkpoint:
    if source.scales is not None:
        raise CheckpointError(
            "the checkpoint is equalized already",
            where=arguments.checkpoint,
            then="undo it first (flaxcle equalize --undo)",
        )
    spec = _spec(arguments, source, step)
    step("balancing")
    scales = solve(source.params, spec, power_of_two=arguments.power_of_two)
    params = rescaled(source.params, scales, spec)
    copies = mirrors(source.params, spec)
    if copies:
        sys.stderr.write(
            f"note: {_names(copies)} mirror scaled leaves (moments or averages) and are copied as "
            "they are; to go on training from this checkpoint, rescale them in the program with "
            "flaxcle.equalize_train_state\n"
        )
    return Checkpoint(params, spec, scales, source.metadata)


def _undone(source: Checkpoint, step: Step) -> Checkpoint:
    scales, spec = _stored(source)
    step("dividing by the stored scales")
    params = rescaled(source.params, scales, spec, inverse=True)
    return Checkpoint(params, metadata=source.metadata)


def _stored(source: Checkpoint) -> tuple[Scales, Spec]:
    if source.scales is None or source.spec is None:
        raise CheckpointError(
            "the checkpoint holds no scales that could be undone",
            then="pass one that flaxcle equalize wrote",
        )
    return source.scales, source.spec


def _summary(result: Checkpoint, output: str) -> str:
    if result.scales is None:
        return f"wrote {output}: the weights before equalization"
    log2 = np.concatenate([np.ravel(row) for row in result.scales.log2.values()])
    return (
        f"wrote {output}: {np.count_nonzero(log2)} of {log2.size} scales moved, "
        f"by factors of up to 2^{np.max(np.abs(log2)):.1f}"
    )


def _by_outputs(reference: str, before: Checkpoint, after: Checkpoint) -> tuple[bool, str]:
    model = load_model(reference)
    found = verify_outputs(model.fn, before.params, after.params, *model.inputs)
    if found.identical:
        return True, "all outputs are the same bit for bit"
    return found.equivalent, (
        f"outputs differ by {found.max_relative:.2g} of the largest one; "
        f"rounding explains {found.tolerance:.2g}"
    )


def _by_scales(before: Checkpoint, after: Checkpoint) -> tuple[bool, str]:
    """Whether the weights of one are those of the other times its scales."""
    if (before.scales is None) == (after.scales is None):
        held = "neither" if before.scales is None else "each"
        raise CheckpointError(
            "without a network exactly one of the checkpoints must hold scales",
            where=f"{held} does",
            then="pass --model MODULE:FUNCTION",
        )
    plain, scaled = (before, after) if before.scales is None else (after, before)
    wrong = unexplained(plain.params, scaled.params, *_stored(scaled))
    if wrong:
        return False, f"the stored scales do not explain {_names(wrong)}"
    return True, "the weights differ by the stored scales alone"


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
