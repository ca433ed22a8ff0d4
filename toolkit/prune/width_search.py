"""Search of block widths that meet a multiply-accumulate or latency goal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.models.resnet import Architecture, Widths, block_macs, macs, resize, strided
from edgeship.toolkit.prune.knapsack import Option, allocate, pareto_options
from edgeship.toolkit.prune.plan import Measure
from edgeship.toolkit.prune.ranking import GroupSensitivity

MIN_WIDTH = 0.125  # least ratio of channels that a group keeps
LATENCY_TOLERANCE = 0.02  # accepted distance of the measured latency from the goal
ROUNDS = 4  # build, measure, rescale
TIMED_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # width ratios at which blocks are timed

MIN_GAIN = 0.03  # least latency reduction that is worth another network

Shape: TypeAlias = "tuple[int, bool, tuple[int, ...]]"  # stage, whether first of it, dense inner widths
Table: TypeAlias = "dict[Shape, dict[tuple[int, ...], float]]"  # milliseconds saved at inner widths


@dataclass(frozen=True, slots=True)
class Allocation:
    """Widths that meet a goal.

    Attributes:
        arch: The network with these widths.
        predicted: Cost predicted from the table, in the unit of the goal.
        measured: Measured cost; for multiply-accumulates the predicted one.
        dense: Cost of the dense network.
    """

    arch: Architecture
    predicted: float
    measured: float
    dense: float


@dataclass(frozen=True, slots=True)
class LatencyGoal:
    """Target latency, and latencies measured on the device.

    Attributes:
        part: Target as a ratio of the dense network's latency.
        dense_ms: Latency of the dense network.
        saved: Milliseconds saved by blocks of each shape, in the dense network.
        narrowed: Whether streams are narrower than in that measurement.
    """

    part: float
    dense_ms: float
    saved: Table
    narrowed: bool = False


def align(width: int, step: int) -> int:
    """Return the channel multiple of a group: the step, but at most a quarter of the width."""
    return max(1, min(step, width // 4))


def nearest_width(width: int, part: float, step: int) -> int:
    """Return the multiple of the group's step nearest to a ratio of its width, at least one step."""
    unit = align(width, step)
    return min(width, max(unit, round(width * part / unit) * unit))


def allowed_widths(width: int, step: int) -> tuple[int, ...]:
    """Return every width that a group may have, ascending."""
    unit = align(width, step)
    least = max(unit, int(width * MIN_WIDTH))
    return (*(w for w in range(unit, width, unit) if w >= least), width)


def uniform(arch: Architecture, part: float, step: int) -> Architecture:
    """Scale every inner group by the same ratio."""
    inner = tuple(
        tuple(tuple(nearest_width(w, part, step) for w in block) for block in stage)
        for stage in arch.widths.inner
    )
    return resize(arch, replace(arch.widths, inner=inner))


def options(
    arch: Architecture,
    sensitivities: Mapping[str, GroupSensitivity],
    drops: Mapping[tuple[int, int], float],
    cost: Callable[[int, int, tuple[int, ...]], float],
    allowed: Callable[[int], tuple[int, ...]],
) -> list[tuple[tuple[int, int], tuple[Option, ...]]]:
    """Return the Pareto-optimal options of every remaining block: ((stage, block), options).

    Args:
        arch: The dense network.
        sensitivities: Group -> loss by number of removed channels.
        drops: (stage, block) -> loss of dropping it, for droppable blocks.
        cost: Stage, block, inner widths (() for dropped) -> cost.
        allowed: Width of a group -> widths it may have.
    """
    candidates = []
    for stage, blocks in enumerate(arch.widths.inner):
        for block, dense in enumerate(blocks):
            if not dense:
                continue
            name = f"layer{stage + 1}.{block}"
            choices = []
            for inner in itertools.product(*(allowed(w) for w in dense)):
                losses = (
                    float(sensitivities[f"{name}.conv{i + 1}"].loss[w - n])
                    for i, (w, n) in enumerate(zip(dense, inner, strict=True))
                )
                choices.append(Option(inner, cost(stage, block, inner), sum(losses)))
            if (stage, block) in drops:
                choices.append(Option((), cost(stage, block, ()), drops[stage, block]))
            candidates.append(((stage, block), pareto_options(choices)))
    return candidates


def for_macs(
    arch: Architecture,
    sensitivities: Mapping[str, GroupSensitivity],
    drops: Mapping[tuple[int, int], float],
    part: float,
    *,
    size: Size,
    step: int,
    of: Architecture | None = None,
) -> Allocation:
    """Find the widths of least loss within a ratio of the multiply-accumulates.

    Args:
        arch: The network with unpruned inner groups.
        sensitivities: Group -> loss by number of removed channels.
        drops: (stage, block) -> loss of dropping it.
        part: Ratio of the multiply-accumulates.
        size: Height and width of an image in pixels.
        step: Channel counts are multiples of it.
        of: Reference network of the ratio, if the streams of `arch` are narrowed; default: `arch`.

    Raises:
        ModelError: Inner channels cannot save so much; the message has the least possible ratio.
    """
    areas = block_sides(arch, size)

    def cost(stage: int, block: int, inner: tuple[int, ...]) -> float:
        if not inner:
            return 0.0
        narrowed = resize(arch, _with_inner(arch.widths, {(stage, block): inner}))
        return float(block_macs(narrowed, stage, block, areas[stage, block]))

    dense = macs(of or arch, size)
    candidates = options(arch, sensitivities, drops, cost, lambda w: allowed_widths(w, step))
    fixed = macs(arch, size) - sum(cost(s, b, arch.widths.inner[s][b]) for (s, b), _ in candidates)
    selected = allocate([choices for _, choices in candidates], part * dense - fixed)
    if selected is None:
        least = (fixed + sum(choices[0].cost for _, choices in candidates)) / dense
        raise ModelError(
            f"prune: {part:.2f} of the multiply-accumulates cannot be met; {least:.2f} can",
            hint="raise the goal, lower prune.channel_multiple, or set prune.scope=both or drop_blocks=true",
        )
    widths = {at: choices[n].inner for (at, choices), n in zip(candidates, selected, strict=True)}
    narrow = resize(arch, _with_inner(arch.widths, widths))
    reached = float(macs(narrow, size))
    return Allocation(narrow, reached, reached, float(dense))


def for_latency(
    arch: Architecture,
    sensitivities: Mapping[str, GroupSensitivity],
    drops: Mapping[tuple[int, int], float],
    goal: LatencyGoal,
    *,
    step: int,
    measure: Measure,
) -> Allocation:
    """Find the widths of least loss within a latency: build, measure, rescale the table, repeat.

    Args:
        arch: The network with unpruned inner groups.
        sensitivities: Group -> loss by number of removed channels.
        drops: (stage, block) -> loss of dropping it.
        goal: Target and measured latencies.
        step: Channel counts are multiples of it.
        measure: Network -> INT8 latency on the device in ms.

    Raises:
        ModelError: The goal cannot be met, or pruning gains less than 3 %.
    """
    dense_ms, part = goal.dense_ms, goal.part
    start_ms = measure(arch) if goal.narrowed else dense_ms
    most = {shape: max(ms.values()) for shape, ms in goal.saved.items()}
    scale, best = start_ms / dense_ms, None  # narrower streams save less
    for _ in range(ROUNDS):

        def cost(stage: int, block: int, inner: tuple[int, ...]) -> float:
            shape = _block_shape(arch, stage, block)
            return most[shape] - goal.saved[shape].get(inner, 0.0)

        candidates = options(arch, sensitivities, drops, cost, lambda w: _timed_widths(w, step))
        reachable = start_ms - scale * sum(most[_block_shape(arch, *at)] for at, _ in candidates)
        budget = (part * dense_ms - reachable) / scale
        selected = allocate([choices for _, choices in candidates], budget)
        if selected is None:
            if best is not None:
                break
            raise ModelError(
                f"prune: {part:.2f} of {dense_ms:.3f} ms cannot be met; "
                f"{reachable / dense_ms:.2f} can, by the table",
                hint="raise prune.latency_ratio, or set prune.scope=both or prune.drop_blocks=true",
            )
        widths = {at: choices[n].inner for (at, choices), n in zip(candidates, selected, strict=True)}
        candidate = resize(arch, _with_inner(arch.widths, widths))
        total = sum(choices[n].cost for (_, choices), n in zip(candidates, selected, strict=True))
        predicted = reachable + scale * total
        measured = measure(candidate)
        result = Allocation(candidate, predicted, measured, dense_ms)
        if best is None or _goal_error(result, part) < _goal_error(best, part):
            best = result
        if abs(measured - part * dense_ms) <= LATENCY_TOLERANCE * dense_ms or start_ms <= predicted:
            break
        scale *= max(0.25, min(4.0, (start_ms - measured) / (start_ms - predicted)))
    assert best is not None
    check_gain(best)
    return best


def widest_within(
    candidates: Sequence[Architecture], cost: Callable[[Architecture], float], part: float, dense: float
) -> tuple[int, float]:
    """Return index and cost of the widest candidate within a ratio of the dense cost, by bisection.

    Candidates are ordered from the widest to the narrowest; a narrower one never costs more.

    Raises:
        ModelError: The last candidate costs more.
    """
    low, high, within = 0, len(candidates) - 1, cost(candidates[-1])
    if within > part * dense:
        raise ModelError(
            f"prune: the streams alone cannot meet {part:.2f} of the dense cost; {within / dense:.2f} can "
            "be met",
            hint="raise the goal, or set prune.scope=both",
        )
    while low < high:
        middle = (low + high) // 2
        reached = cost(candidates[middle])
        if reached <= part * dense:
            high, within = middle, reached
        else:
            low = middle + 1
    return high, within


def check_gain(allocation: Allocation) -> None:
    """Raise if the measured gain is below 3 %.

    Raises:
        ModelError: The measured gain is below 3 %.
    """
    if allocation.measured > (1 - MIN_GAIN) * allocation.dense:
        raise ModelError(
            f"pruning does not pay here: {allocation.dense:.3f} ms dense, {allocation.measured:.3f} ms at "
            f"widths {allocation.arch.widths.inner}, less than {MIN_GAIN:.0%} gained",
            hint="keep the dense INT8 model, or set a lower prune.latency_ratio",
        )


def block_sides(arch: Architecture, size: Size) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (stage, block) -> height and width of the block's input, for an image size in pixels."""
    area = arch.stem_sides(size)
    block_areas = {}
    for stage, blocks in enumerate(arch.widths.inner):
        for block in range(len(blocks)):
            block_areas[stage, block] = area
            area = strided(area, arch.stride(stage, block))
    return block_areas


def _with_inner(widths: Widths, inner: Mapping[tuple[int, int], tuple[int, ...]]) -> Widths:
    return replace(
        widths,
        inner=tuple(
            tuple(inner.get((s, b), old) for b, old in enumerate(blocks))
            for s, blocks in enumerate(widths.inner)
        ),
    )


def _timed_widths(width: int, step: int) -> tuple[int, ...]:
    """Return the widths at which blocks are timed."""
    return tuple(sorted({nearest_width(width, part, step) for part in TIMED_RATIOS} | {width}))


def time_blocks(
    arch: Architecture, dense_ms: float, step: int, measure: Measure, drops: Mapping[tuple[int, int], float]
) -> Table:
    """Measure the milliseconds that one block of each shape saves at each timed width.

    All blocks of a shape are narrowed together in the whole network, with the fusions of deployment, and
    the saving is divided by their number; a narrower block never saves less than a wider one.

    Args:
        arch: The dense network.
        dense_ms: Latency of the dense network.
        step: Channel counts are multiples of it.
        measure: Network -> INT8 latency on the device in ms.
        drops: (stage, block) of droppable blocks.
    """
    shapes: dict[Shape, list[tuple[int, int]]] = {}
    for stage, blocks in enumerate(arch.widths.inner):
        for block, inner in enumerate(blocks):
            if inner:
                shapes.setdefault(_block_shape(arch, stage, block), []).append((stage, block))
    jobs: list[tuple[Shape, list[tuple[int, int]], tuple[int, ...]]] = []
    for shape, members in shapes.items():
        dense = shape[2]
        narrower = {tuple(nearest_width(w, part, step) for w in dense) for part in TIMED_RATIOS} - {dense}
        jobs.extend((shape, members, inner) for inner in sorted(narrower, key=sum, reverse=True))
        if droppable := [member for member in members if member in drops]:
            jobs.append((shape, droppable, ()))
    saved: Table = {shape: {shape[2]: 0.0} for shape in shapes}
    for shape, members, inner in track(jobs, "timing blocks"):
        ms = measure(resize(arch, _with_inner(arch.widths, dict.fromkeys(members, inner))))
        saved[shape][inner] = max(*saved[shape].values(), (dense_ms - ms) / len(members))
    return saved


def _block_shape(arch: Architecture, stage: int, block: int) -> Shape:
    return stage, block == 0, arch.widths.inner[stage][block]


def _goal_error(result: Allocation, part: float) -> float:
    return abs(result.measured / result.dense - part)
