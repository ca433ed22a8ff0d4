"""Logging of runs to MLflow."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.results import RunReport
from edgeship.toolkit.report import formatting

LONGEST = 500  # characters of a parameter: the limit of the oldest MLflow servers


def log(report: RunReport, folder: Path) -> str:
    """Log recipe options, metrics and report files to the server of MLFLOW_TRACKING_URI.

    Args:
        report: The report.
        folder: Folder of the report files.

    Returns:
        Identifier of the MLflow run.

    Raises:
        ToolkitError: MLflow is not installed, or its server cannot be reached.
    """
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError as error:
        raise ToolkitError("mlflow is not installed", hint="pip install 'edgeship[mlflow]'") from error
    try:
        with mlflow.start_run(run_name=f"{report.model.name} {formatting.recipe_name(report.recipe)}") as run:
            mlflow.log_params({key: value[:LONGEST] for key, value in formatting.flat_options(report.recipe)})
            mlflow.log_metrics(metrics(report))
            mlflow.set_tags({"edgeship.command": report.command or "", "edgeship.schema": str(report.schema)})
            for name in ("report.html", "report.json", "report.md", "junit.xml"):
                if (folder / name).is_file():
                    mlflow.log_artifact(str(folder / name))
            identity: str = run.info.run_id
            return identity
    except mlflow.exceptions.MlflowException as error:
        raise ToolkitError(
            f"MLflow did not log the run: {error}", hint="set MLFLOW_TRACKING_URI to a reachable server"
        ) from error


def metrics(report: RunReport) -> dict[str, float]:
    """Return measured figures as `variant/figure`, and 1 or 0 per decided gate as `gate/name/variant`."""
    values: dict[str, float] = {}
    for v in report.variants:
        figures = {
            "top1": v.top1,
            "top5": v.top5,
            "drop_pp": v.drop_pp,
            "agreement": v.agreement,
            "sqnr_db": v.sqnr_db,
            "latency_p50_ms": v.latency_ms.p50 if v.latency_ms else None,
            "latency_p99_ms": v.latency_ms.p99 if v.latency_ms else None,
            "speedup": v.speedup,
            "throughput_ips": v.throughput_ips,
            "end_to_end_ms": v.end_to_end_ms,
            "energy_mj": v.energy_mj,
            "memory_bytes": v.memory_bytes,
            "resident_bytes": v.resident_bytes,
            "size_bytes": v.size_bytes,
        }
        values |= {f"{v.name}/{name}": float(value) for name, value in figures.items() if value is not None}
    for gate in report.gates:
        if gate.passed is not None:
            values[f"gate/{gate.name}/{gate.variant or 'run'}"] = float(gate.passed)
    return values
