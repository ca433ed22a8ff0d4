"""From a goal to channel counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.tensors import Size, sides
from edgeship.toolkit.models.resnet import Architecture, Widths, block_macs, macs, resize, strided
from edgeship.toolkit.prune.knapsack import Option, allocate, right_edges
from edgeship.toolkit.prune.plan import Measure
from edgeship.toolkit.prune.ranking import Surveyed

LEAST = 0.125  # part of a group that always stays
CLOSE = 0.02  # a measured latency this near to the goal is good enough
ROUNDS = 4  # build, measure, rescale
TABLE = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # parts of the channels at which blocks are timed

LEAST_GAIN = 0.03  # of the latency: less is not worth another network

Shape: TypeAlias = "tuple[int, bool, tuple[int, ...]]"  # stage, whether first of it, dense inner widths
Table: TypeAlias = "dict[Shape, dict[tuple[int, ...], float]]"  # milliseconds saved at inner widths


@dataclass(frozen=True, slots=True)
class Allocated:
    """Widths that meet a goal.

    Attributes:
        arch: The network with these widths.
        predicted: Its cost by the table, in the unit of the goal.
        measured: Its cost, measured; of multiply-accumulates the same.
        dense: Cost of the dense network.
    """

    arch: Architecture
    predicted: float
    measured: float
    dense: float


@dataclass(frozen=True, slots=True)
class LatencyGoal:
    """A latency to reach, and what is known of the device.

    Attributes:
        part: Of the dense network's latency.
        dense_ms: That latency.
        saved: What blocks of each shape save, in the dense network.
        narrowed: Whether streams are narrower already than when that was measured.
    """

    part: float
    dense_ms: float
    saved: Table
    narrowed: bool = False


def align(width: int, step: int) -> int:
    """The step that a group can follow: a quarter of its width at most."""
    return max(1, min(step, width // 4))


def nearest(width: int, part: float, step: int) -> int:
    """The multiple of the group's step nearest to a part of its width, at least one step."""
    unit = align(width, step)
    return min(width, max(unit, round(width * part / unit) * unit))


def counts(width: int, step: int) -> tuple[int, ...]:
    """Every count that a group may keep, ascending."""
    unit = align(width, step)
    least = max(unit, int(width * LEAST))
    return (*(w for w in range(unit, width, unit) if w >= least), width)


def uniform(arch: Architecture, part: float, step: int) -> Architecture:
    """Every inner group at the same part of its width."""
    inner = tuple(
        tuple(tuple(nearest(w, part, step) for w in block) for block in stage) for stage in arch.widths.inner
    )
    return resize(arch, replace(arch.widths, inner=inner))


def options(
    arch: Architecture,
    surveyed: Mapping[str, Surveyed],
    drops: Mapping[tuple[int, int], float],
    cost: Callable[[int, int, tuple[int, ...]], float],
    allowed: Callable[[int], tuple[int, ...]],
) -> list[tuple[tuple[int, int], tuple[Option, ...]]]:
    """The options of every block that is left: (stage, block) -> right edges of cost and error.

    Args:
        arch: The dense network.
        surveyed: Group -> loss by count.
        drops: (stage, block) -> loss of dropping it, where that is allowed.
        cost: Stage, block, inner widths (() for dropped) -> cost.
        allowed: Width of a group -> counts it may keep.
    """
    found = []
    for stage, blocks in enumerate(arch.widths.inner):
        for block, dense in enumerate(blocks):
            if not dense:
                continue
            name = f"layer{stage + 1}.{block}"
            choices = []
            for inner in itertools.product(*(allowed(w) for w in dense)):
                losses = (
                    float(surveyed[f"{name}.conv{i + 1}"].loss[w - n])
                    for i, (w, n) in enumerate(zip(dense, inner, strict=True))
                )
                choices.append(Option(inner, cost(stage, block, inner), sum(losses)))
            if (stage, block) in drops:
                choices.append(Option((), cost(stage, block, ()), drops[stage, block]))
            found.append(((stage, block), right_edges(choices)))
    return found


def for_macs(
    arch: Architecture,
    surveyed: Mapping[str, Surveyed],
    drops: Mapping[tuple[int, int], float],
    part: float,
    *,
    size: Size,
    step: int,
    of: Architecture | None = None,
) -> Allocated:
    """The least loss within a part of the multiply-accumulates.

    Args:
        arch: The network, its inner groups still whole.
        surveyed: Group -> loss by count.
        drops: (stage, block) -> loss of dropping it.
        part: Of the multiply-accumulates.
        size: Height and width of an image in pixels.
        step: Channel counts are multiples of it.
        of: The network whose part is meant, where streams are narrower already; default: `arch`.

    Raises:
        ModelError: Block-internal channels cannot save so much; the message says what they can.
    """
    areas = block_sides(arch, size)

    def cost(stage: int, block: int, inner: tuple[int, ...]) -> float:
        if not inner:
            return 0.0
        narrowed = resize(arch, _with(arch.widths, {(stage, block): inner}))
        return float(block_macs(narrowed, stage, block, areas[stage, block]))

    dense = macs(of or arch, size)
    found = options(arch, surveyed, drops, cost, lambda w: counts(w, step))
    fixed = macs(arch, size) - sum(cost(s, b, arch.widths.inner[s][b]) for (s, b), _ in found)
    chosen = allocate([choices for _, choices in found], part * dense - fixed)
    if chosen is None:
        least = (fixed + sum(choices[0].cost for _, choices in found)) / dense
        raise ModelError(
            f"prune: {part:.2f} of the multiply-accumulates cannot be met; {least:.2f} can",
            hint="raise the goal, lower prune.channel_multiple, or set prune.scope=both or drop_blocks=true",
        )
    widths = {where: choices[n].inner for (where, choices), n in zip(found, chosen, strict=True)}
    narrow = resize(arch, _with(arch.widths, widths))
    reached = float(macs(narrow, size))
    return Allocated(narrow, reached, reached, float(dense))


def for_latency(
    arch: Architecture,
    surveyed: Mapping[str, Surveyed],
    drops: Mapping[tuple[int, int], float],
    goal: LatencyGoal,
    *,
    step: int,
    measure: Measure,
) -> Allocated:
    """The least loss within a latency: build, measure, rescale the table, repeat.

    Args:
        arch: The network, its inner groups still whole.
        surveyed: Group -> loss by count.
        drops: (stage, block) -> loss of dropping it.
        goal: What to reach, and what is known of the device.
        step: Channel counts are multiples of it.
        measure: Milliseconds of a network in INT8 on the device.

    Raises:
        ModelError: The goal cannot be met, or pruning gains less than 3 %.
    """
    dense_ms, part = goal.dense_ms, goal.part
    start_ms = measure(arch) if goal.narrowed else dense_ms
    most = {shape: max(ms.values()) for shape, ms in goal.saved.items()}
    scale, best = start_ms / dense_ms, None  # a narrower stream saves less
    for _ in range(ROUNDS):

        def cost(stage: int, block: int, inner: tuple[int, ...]) -> float:
            shape = _shape(arch, stage, block)
            return most[shape] - goal.saved[shape].get(inner, 0.0)

        found = options(arch, surveyed, drops, cost, lambda w: _timed(w, step))
        reachable = start_ms - scale * sum(most[_shape(arch, *where)] for where, _ in found)
        budget = (part * dense_ms - reachable) / scale
        chosen = allocate([choices for _, choices in found], budget)
        if chosen is None:
            if best is not None:
                break
            raise ModelError(
                f"prune: {part:.2f} of {dense_ms:.3f} ms cannot be met; "
                f"{reachable / dense_ms:.2f} can, by the table",
                hint="raise prune.latency_ratio, or allow prune.scope=both or prune.drop_blocks=true",
            )
        widths = {where: choices[n].inner for (where, choices), n in zip(found, chosen, strict=True)}
        candidate = resize(arch, _with(arch.widths, widths))
        total = sum(choices[n].cost for (_, choices), n in zip(found, chosen, strict=True))
        predicted = reachable + scale * total
        measured = measure(candidate)
        result = Allocated(candidate, predicted, measured, dense_ms)
        if best is None or _distance(result, part) < _distance(best, part):
            best = result
        if abs(measured - part * dense_ms) <= CLOSE * dense_ms or start_ms <= predicted:
            break
        scale *= max(0.25, min(4.0, (start_ms - measured) / (start_ms - predicted)))
    assert best is not None
    check_gain(best)
    return best


def streams_for(
    candidates: Sequence[Architecture], cost: Callable[[Architecture], float], part: float, dense: float
) -> tuple[int, float]:
    """Which of the candidates, widest first, is the widest within a part of the dense cost, and its cost.

    Source:
        Bisection: a narrower stream never costs more.

    Raises:
        ModelError: Not even the last one is.
    """
    low, high, within = 0, len(candidates) - 1, cost(candidates[-1])
    if within > part * dense:
        raise ModelError(
            f"prune: the streams alone cannot save so much: {part:.2f} is asked for, {within / dense:.2f} "
            "can be met",
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


def check_gain(found: Allocated) -> None:
    """Refuse, with the figures, what is smaller but hardly faster.

    Raises:
        ModelError: The measured gain is below 3 %.
    """
    if found.measured > (1 - LEAST_GAIN) * found.dense:
        raise ModelError(
            f"pruning does not pay here: {found.dense:.3f} ms dense, {found.measured:.3f} ms at widths "
            f"{found.arch.widths.inner}, less than {LEAST_GAIN:.0%} gained",
            hint="keep the dense INT8 model, or set a lower prune.latency_ratio",
        )


def block_sides(arch: Architecture, size: Size) -> dict[tuple[int, int], tuple[int, int]]:
    """(stage, block) -> height and width of the block's input, for images of a size in pixels."""
    area = strided(size, 4) if arch.stem == "imagenet" else sides(size)
    found = {}
    for stage, blocks in enumerate(arch.widths.inner):
        for block in range(len(blocks)):
            found[stage, block] = area
            area = strided(area, arch.stride(stage, block))
    return found


def _with(widths: Widths, inner: Mapping[tuple[int, int], tuple[int, ...]]) -> Widths:
    return replace(
        widths,
        inner=tuple(
            tuple(inner.get((s, b), old) for b, old in enumerate(blocks))
            for s, blocks in enumerate(widths.inner)
        ),
    )


def _timed(width: int, step: int) -> tuple[int, ...]:
    """The counts at which blocks are timed."""
    return tuple(sorted({nearest(width, part, step) for part in TABLE} | {width}))


def time_blocks(
    arch: Architecture, dense_ms: float, step: int, measure: Measure, drops: Mapping[tuple[int, int], float]
) -> Table:
    """Milliseconds that one block of a shape saves at each of its timed widths.

    Blocks of one shape are narrowed together in the whole network, as it will be fused and deployed,
    and share what that saves; a narrower block never saves less than a wider one.

    Args:
        arch: The dense network.
        dense_ms: Its latency.
        step: Channel counts are multiples of it.
        measure: Milliseconds of a network in INT8 on the device.
        drops: (stage, block) of blocks that may go.
    """
    shapes: dict[Shape, list[tuple[int, int]]] = {}
    for stage, blocks in enumerate(arch.widths.inner):
        for block, inner in enumerate(blocks):
            if inner:
                shapes.setdefault(_shape(arch, stage, block), []).append((stage, block))
    work: list[tuple[Shape, list[tuple[int, int]], tuple[int, ...]]] = []
    for shape, members in shapes.items():
        dense = shape[2]
        narrower = {tuple(nearest(w, part, step) for w in dense) for part in TABLE} - {dense}
        work.extend((shape, members, inner) for inner in sorted(narrower, key=sum, reverse=True))
        if droppable := [member for member in members if member in drops]:
            work.append((shape, droppable, ()))
    saved: Table = {shape: {shape[2]: 0.0} for shape in shapes}
    for shape, members, inner in track(work, "timing blocks"):
        ms = measure(resize(arch, _with(arch.widths, dict.fromkeys(members, inner))))
        saved[shape][inner] = max(*saved[shape].values(), (dense_ms - ms) / len(members))
    return saved


def _shape(arch: Architecture, stage: int, block: int) -> Shape:
    return stage, block == 0, arch.widths.inner[stage][block]


def _distance(result: Allocated, part: float) -> float:
    return abs(result.measured / result.dense - part)
