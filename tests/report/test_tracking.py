"""Logging to MLflow, with a recorder in its place: the calls are MLflow's documented ones."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from synthetic import COMMAND, STAGES

from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.report import render, tracking
from edgeship.toolkit.report.gather import gather


class Refused(Exception):
    pass


def recorder(monkeypatch, *, refuse=False):
    logged = {"artifacts": []}

    @contextmanager
    def start_run(run_name):
        if refuse:
            raise Refused("no server at that address")
        logged["name"] = run_name
        yield SimpleNamespace(info=SimpleNamespace(run_id="run-7"))

    fake = SimpleNamespace(
        start_run=start_run,
        log_params=lambda params: logged.update(params=params),
        log_metrics=lambda metrics: logged.update(metrics=metrics),
        set_tags=lambda tags: logged.update(tags=tags),
        log_artifact=lambda path: logged["artifacts"].append(path.rsplit("/", 1)[-1]),
        exceptions=SimpleNamespace(MlflowException=Refused),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return logged


@pytest.fixture
def report(run):
    recipe = {"name": "synthetic", "quantize": {"observer": "mse", "long": "x" * 900}}
    return gather(run, recipe=recipe, stages=STAGES, command=COMMAND, max_drop_pp=50.0, min_speedup=1.0)


def test_parameters_figures_and_files_are_logged(report, tmp_path, monkeypatch):
    logged = recorder(monkeypatch)
    render.write(report, tmp_path)
    assert tracking.log(report, tmp_path) == "run-7"
    int8 = next(v for v in report.variants if v.name == "openvino-int8")
    assert logged["params"]["quantize.observer"] == "mse"
    assert len(logged["params"]["quantize.long"]) == 500
    assert logged["metrics"]["openvino-int8/top1"] == int8.top1
    assert logged["metrics"]["openvino-int8/latency_p50_ms"] == int8.latency_ms.p50
    assert logged["metrics"]["openvino-int8/memory_bytes"] == int8.memory_bytes > 0
    assert logged["metrics"]["openvino-int8/end_to_end_ms"] == int8.end_to_end_ms > int8.latency_ms.p50
    assert "openvino-int8/energy_mj" not in logged["metrics"]
    assert logged["metrics"]["gate/max_drop_pp/openvino-int8"] == 1.0
    assert logged["tags"]["edgeship.command"] == COMMAND
    assert sorted(logged["artifacts"]) == ["junit.xml", "report.html", "report.json", "report.md"]


def test_a_figure_that_does_not_exist_is_not_logged(report):
    values = tracking.metrics(report)
    assert "tensorrt-int8/top1" in values
    assert "tensorrt-int8/latency_p50_ms" not in values
    assert "gate/min_speedup/tensorrt-int8" not in values


def test_a_refusal_is_an_error_with_a_hint(report, tmp_path, monkeypatch):
    recorder(monkeypatch, refuse=True)
    with pytest.raises(ToolkitError, match="no server at that address") as caught:
        tracking.log(report, tmp_path)
    assert "MLFLOW_TRACKING_URI" in caught.value.hint


def test_without_mlflow_the_hint_says_how_to_get_it(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ToolkitError, match="not installed") as caught:
        tracking.log(report, tmp_path)
    assert "edgeship[mlflow]" in caught.value.hint
