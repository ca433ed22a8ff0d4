"""MLPerf LoadGen: its summary is read, and a short run of the real one."""

import importlib.util
import json

import pytest
from float_graphs import residual

from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.pipeline import loadgen

SUMMARY = """\
SUT name : PySUT
Scenario : {scenario}
{field}: {value}
Result is : {result}
Early Stopping Result:
 * Processed at least 64 queries (1400).
"""


@pytest.mark.parametrize(
    ("scenario", "field", "value", "expected"),
    [
        ("SingleStream", "90.0th percentile latency (ns) ", "4158282", (4.158282, "p90_ms")),
        ("MultiStream", "99.0th percentile latency (ns) ", "46791950", (46.79195, "p99_ms")),
        ("Offline", "Samples per second", "343.317", (343.317, "images_per_s")),
    ],
)
def test_the_summary_is_read(tmp_path, scenario, field, value, expected):
    for result in ("VALID", "INVALID"):
        text = SUMMARY.format(scenario=scenario, field=field, value=value, result=result)
        (tmp_path / loadgen.SUMMARY).write_text(text)
        read = loadgen._result("a", scenario, tmp_path, official=False)
        assert (pytest.approx(read.value), read.unit) == expected
        assert read.valid == (result == "VALID") and not read.official


def test_an_incomplete_log_and_a_missing_package_are_errors(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has no field"):
        loadgen._result("a", "Offline", tmp_path, official=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        loadgen.measure({}, (1, 3, 8, 8), ("Offline",), tmp_path, threads=1)
    assert "edgeship[loadgen]" in caught.value.hint


@pytest.mark.slow
def test_loadgen_writes_logs_without_errors(tmp_path, capsys):
    pytest.importorskip("mlperf_loadgen", reason="the extra `loadgen` is not installed")
    net = residual(batch=1).save(tmp_path / "net.onnx")
    command = ["bench", net, "--target", "onnxruntime", "--runs", "2", "--json"]
    with pytest.raises(SystemExit) as left:
        app.main([*map(str, command), "--loadgen", str(tmp_path / "logs"), "--loadgen-duration-s", "2"])
    results = json.loads(capsys.readouterr().out)["loadgen"]
    assert not left.value.code and [each["scenario"] for each in results] == list(loadgen.SCENARIOS)
    assert all(each["value"] > 0 and not each["official"] for each in results)
    for scenario in loadgen.SCENARIOS:
        (log,) = (tmp_path / "logs").glob(f"*/{scenario}/mlperf_log_detail.txt")
        entries = [json.loads(line.removeprefix(":::MLLOG ")) for line in log.read_text().splitlines()]
        keys = {each["key"]: each["value"] for each in entries}
        assert keys["effective_qsl_rng_seed"] == 2085463073848966840  # of LoadGen's mlperf.conf
        assert keys["effective_performance_sample_count"] == 1024
        errors = [each["key"] for each in entries if each["metadata"]["is_error"]]
        assert not [key for key in errors if key == "error_invalid_config"]
