"""From networks and data to findings: everything that is measured for a report."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import jax
import numpy as np

from flaxcle.analysis import RangeStatistics, memory_table, range_statistics, sensitivity
from flaxcle.clips import expose_clips
from flaxcle.discover import find_spec
from flaxcle.errors import FoldError, TraceError
from flaxcle.fold import fold_batch_norm
from flaxcle.jaxpr import trace
from flaxcle.paths import strip_collection
from flaxcle.quantize.plan import make_plan
from flaxcle.report.data import Findings, Hint, Node
from flaxcle.report.factors import scale_table
from flaxcle.report.headline import float_outputs, measured_headline
from flaxcle.report.network import read_network
from flaxcle.report.remedies import remedy
from flaxcle.report.sides import with_sides
from flaxcle.report.subject import Network, Subject
from flaxcle.spec import Blocked, Spec
from flaxcle.tables import Table
from flaxcle.verify import difference

BLOCKED_COLUMNS = ("reason", "what to do", "axes", "operation", "where", "which")
NAMED = 6


def gather(
    subject: Subject, spec: Spec | None, labels: Any, headline: Table | None, title: str
) -> Findings:
    """All the measurements."""
    after, first = subject.after, subject.data[0]
    floats = float_outputs(*subject.original, subject.data)
    moved = float_outputs(after.fn, after.params, subject.data)
    found = find_spec(after.fn, after.params, *first)
    used = spec or found
    nodes = with_sides(_nodes(after, first), used, found)
    ranges = _ranges(after, subject)
    return Findings(
        title=title,
        config=after.config,
        headline=headline or measured_headline(subject, floats, labels),
        unchanged=difference(list(chain(*floats)), list(chain(*moved))),
        nodes=nodes,
        before=named_alike(_ranges(subject.before, subject), ranges),
        after=ranges,
        sensitivity=sensitivity(
            after.fn, after.params, subject.probes, after.config, after.calibration
        ),
        memory=memory_table(after.fn, after.params, after.config, *first),
        scales=scale_table(subject.before.params, after.params, used),
        blocked=blocked_table(found.blocked),
        stages=subject.stages,
        hints=frozenset(_hints(after, first, nodes)),
    )


def _nodes(network: Network, inputs: tuple[Any, ...]) -> tuple[Node, ...]:
    program = trace(network.fn, network.params, *inputs)
    return read_network(program, make_plan(program))


def _ranges(network: Network, subject: Subject) -> RangeStatistics:
    return range_statistics(
        network.fn, network.params, subject.probes, network.config, network.calibration
    )


def named_alike(before: RangeStatistics, after: RangeStatistics) -> RangeStatistics:
    """`before` with the names of `after`: `expose_clips` takes the scopes from residual sums."""
    names: dict[str, str] = {}
    tables = []
    for old, new in ((before.weights, after.weights), (before.activations, after.activations)):
        if len(old) != len(new):
            return before
        names |= dict(zip(old.column("name"), new.column("name"), strict=True))
        rows = (theirs[:2] + ours[2:] for ours, theirs in zip(old.rows, new.rows, strict=True))
        tables.append(Table(old.columns, tuple(rows)))
    channels = {names[name]: values for name, values in before.channels.items()}
    histograms = {names[name]: found for name, found in before.histograms.items()}
    weights, activations = tables
    return RangeStatistics(weights, activations, channels, histograms)


def blocked_table(blocked: Iterable[Blocked]) -> Table:
    """One row for each reason, the most frequent first."""
    alike: dict[tuple[str, str], list[Blocked]] = {}
    for row in blocked:
        alike.setdefault((row.reason, row.primitive), []).append(row)
    rows = []
    for (reason, primitive), members in sorted(alike.items(), key=lambda item: -len(item[1])):
        places = dict.fromkeys(row.source for row in members if row.source)
        axes = (f"{strip_collection(row.path)}[{row.axis}]" for row in members)
        texts = (primitive, ", ".join(places), _some(list(axes)))
        rows.append((reason, remedy(reason), len(members), *texts))
    return Table(BLOCKED_COLUMNS, tuple(rows))


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _hints(network: Network, inputs: tuple[Any, ...], nodes: Iterable[Node]) -> Iterable[Hint]:
    """What was left undone."""
    if _folds(network, inputs):
        yield "fold"
    if expose_clips(network.fn, network.params, *inputs)[0] is not network.fn:
        yield "clips"
    sides = [side for node in nodes for side in (node.reads, node.makes) if side is not None]
    if any(side.state == "undeclared" for side in sides):
        yield "undeclared"


def _folds(network: Network, inputs: tuple[Any, ...]) -> bool:
    """Whether a norm has not been folded yet."""
    try:
        folded = fold_batch_norm(network.fn, network.params, *inputs)
    except (FoldError, TraceError):
        return False
    pairs = zip(jax.tree.leaves(network.params), jax.tree.leaves(folded), strict=True)
    return any(not np.array_equal(one, two) for one, two in pairs if one is not two)
