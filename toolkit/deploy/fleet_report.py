"""Report a fleet: versions, accuracy, latency, power and outliers."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import plain, write_json, write_text
from edgeship.toolkit.deploy.checks import latency
from edgeship.toolkit.deploy.release import DeployOutcome

SCHEMA = 1
PEERS = 3  # minimum number of comparable devices
SCORE = 3.5  # modified z-score (Iglewicz and Hoaglin 1993, "How to detect and handle outliers")
MARGIN = 0.1  # minimum distance from the median as a share of it; smaller ones are noise

_EXPLAINS = ("power-mode", "over-current")  # problems that explain a latency

# Name, unit, factor from the record to the unit.
_FIGURES = (("latency p50", "ms", 1.0), ("top-1", "%", 100.0), ("power", "mW", 1.0))


def report(outcomes: Sequence[DeployOutcome], release: str, *, parallel: int) -> dict[str, Any]:
    """Build the report of a rollout.

    Args:
        outcomes: One for each device.
        release: Name of the bundle.
        parallel: Devices processed at once; affects latencies where devices share a machine.

    Returns:
        schema, bundle, at, counts {state: devices}, fake, outliers [{device, figure, value, median, unit}],
        devices [each Outcome].
    """
    counts: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        counts[outcome.state] += 1
    return {
        "schema": SCHEMA,
        "bundle": release,
        "at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "parallel": parallel,
        "counts": dict(counts),
        "fake": any(outcome.record and outcome.record["fake"] for outcome in outcomes),
        "outliers": outliers(outcomes),
        "devices": [plain(outcome) for outcome in outcomes],
    }


def outliers(outcomes: Sequence[DeployOutcome]) -> list[dict[str, Any]]:
    """Return devices far from the median of their kind: same target, variant, machine and settings."""
    kinds: dict[tuple[str, ...], list[DeployOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.record:
            kinds[_kind(outcome.record)].append(outcome)
    rows = []
    for peers in kinds.values():
        for place, (name, unit, factor) in enumerate(_FIGURES):
            values = {
                peer.device: value * factor
                for peer in peers
                if peer.record and (value := _figures(peer.record)[place]) is not None
            }
            if len(values) < PEERS:
                continue
            median = statistics.median(values.values())
            spread = statistics.median(abs(value - median) for value in values.values())
            rows += [
                {"device": device, "figure": name, "value": value, "median": median, "unit": unit}
                for device, value in values.items()
                if abs(value - median) > MARGIN * abs(median)
                and 0.6745 * abs(value - median) > SCORE * spread
            ]
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    counts = ", ".join(f"{count} {state}" for state, count in report["counts"].items())
    lines = [
        f"# Fleet: {report['bundle']}",
        "",
        f"{len(report['devices'])} devices: {counts}. {report['at']}.",
        "",
    ]
    if report["fake"]:
        lines += ["**Measured with a fake SDK: the figures are not valid for any device.**", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table(report)]
    lines += [
        "",
        "Top-1 in brackets: difference from the simulation on the same images. "
        "Latency: median, with batch and CPU threads.",
    ]
    if report["outliers"]:
        lines += ["", "## Outliers", ""]
        lines += [f"- {outlier_text(outlier)}" for outlier in report["outliers"]]
    failed = [device for device in report["devices"] if device["error"]]
    if failed:
        lines += ["", "## Failed or skipped", ""]
        lines += [f"- {device['device']}: {device['error']} ({device['hint']})" for device in failed]
    return "\n".join(lines) + "\n"


def outlier_text(outlier: dict[str, Any]) -> str:
    """Return one outlier as text: value and median of comparable devices."""
    figure = f"{outlier['figure']} {outlier['value']:.3g} {outlier['unit']}"
    return (
        f"{outlier['device']}: {figure}, the median of its kind is {outlier['median']:.3g} {outlier['unit']}"
    )


COLUMNS = ("device", "state", "release", "runtime", "top-1", "p50 latency", "power", "notes")


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of text cells for each device."""
    return [_row(device) for device in report["devices"]]


def write(report: dict[str, Any], folder: Path) -> Path:
    """Write fleet.json and fleet.md; return the path of fleet.md."""
    write_json(folder / "fleet.json", report)
    write_text(folder / "fleet.md", markdown(report))
    return folder / "fleet.md"


def _kind(record: Any) -> tuple[str, ...]:
    facts = record["facts"]
    machine = facts.get("jetson") or facts.get("cpu") or {}
    name = machine.get("module") or machine.get("name")
    measured = record["latency_ms"]
    setting = f"batch {measured['batch']}, threads {measured.get('threads')}"
    return record["target"], record["variant"], str(name), setting


def _figures(record: Any) -> tuple[float | None, float | None, float | None]:
    accuracy = record["accuracy"] or {}
    return record["latency_ms"]["p50"], accuracy.get("top1"), record["power_mw"]


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    record = device["record"]
    if record is None:
        return (device["device"], device["state"], device["release"] or "", "", "", "", "", "")
    _, top1, power_mw = _figures(record)
    gap_pp = (record["accuracy"] or {}).get("gap_pp")
    difference = "" if gap_pp is None else f" ({0.0 - gap_pp:+.2f} pp)"
    causes = [problem["cause"] for problem in record["problems"] if problem["code"] in _EXPLAINS]
    notes = [*(["fake"] if record["fake"] else []), *causes, *(record["marks"] or ())]
    return (
        device["device"],
        device["state"],
        device["release"],
        f"{record['build']['backend']} {record['build']['version'].split('-')[0]}",
        "" if top1 is None else f"{100 * top1:.2f} %{difference}",
        latency(record),
        "" if power_mw is None else f"{power_mw / 1000:.2f} W",
        "; ".join(notes),
    )
