"""Options of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.options import check_bounds, option
from edgeship.toolkit.prune.time_budget import read_seconds

GOALS = ("keep_ratio", "macs_ratio", "latency_ratio", "max_expected_drop_pp")


def _methods() -> tuple[str, ...]:
    return ("none", *plugins.names("edgeship.toolkit.prune.importances"))


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Structured pruning before quantization; one goal: a ratio, or max_expected_drop_pp."""

    method: str = option("obs", "none, or how channels are chosen: obs, magnitude, ...", known=_methods)
    keep_ratio: float | None = option(
        None, "Ratio of the channels inside blocks to keep.", above=0.0, most=1.0, renamed_from="keep"
    )
    macs_ratio: float | None = option(
        None, "Ratio of the multiply-accumulates to keep.", above=0.0, most=1.0, renamed_from="macs"
    )
    latency_ratio: float | None = option(
        None,
        "Latency to reach, as a ratio to the unpruned INT8 model's.",
        above=0.0,
        most=1.0,
        renamed_from="target_latency",
    )
    max_expected_drop_pp: float | None = option(
        None,
        "Largest expected drop of top-1, in percentage points; needs no labels.",
        least=0.0,
        renamed_from="max_drop_pp",
        flag="--max-drop",
        former_flags=("--max-expected-drop-pp",),
    )
    channel_multiple: int = option(
        16,
        "Channel counts are multiples of this number (narrow groups: of a quarter of their width).",
        least=1,
        renamed_from="step",
    )
    scope: Literal["block", "residual", "both", "joint"] = option(
        "block",
        "Channels to prune: block (inside blocks), residual (residual stream), both (one ratio for all "
        "streams), or joint (a width for each stream; whole blocks and the resolution too).",
        renamed_values={"inner": "block", "stream": "residual"},
    )
    drop_blocks: bool = option(False, "Also remove whole blocks.")
    budget_s: float | None = option(
        None,
        "Time for search, refit and distillation (instead of finetune.epochs): seconds, or 90s, 20min, 1h.",
        least=1.0,
        read=read_seconds,
        flag="--budget",
        metavar="TIME",
    )
    flip_augment: bool = option(True, "Also use the mirrored images.", renamed_from="mirror")
    seed: int = option(0, "Seed of the selection.", least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if len(goals) > 1:
            raise RecipeError(
                f"prune: {' and '.join(goals)} are given; one goal is expected", hint="delete the others"
            )
        if goals and self.method == "none":
            raise RecipeError(
                f"prune.{goals[0]} is set, but prune.method is none", hint="set prune.method to obs"
            )
        if self.budget_s is not None and self.method == "none":
            raise RecipeError(
                "prune.budget_s is set, but prune.method is none", hint="set prune.method to obs"
            )
        if self.scope == "joint" and goals and self.latency_ratio is None:
            raise RecipeError(
                f"prune.scope is joint and the goal is {goals[0]}; latency_ratio is expected",
                hint="set prune.latency_ratio, or prune.scope=both",
            )
        if not goals and self.method != "none":
            raise RecipeError(
                "prune: no goal is given; one is expected",
                hint=f"set prune.{', '.join(GOALS[:-1])} or {GOALS[-1]}",
            )
