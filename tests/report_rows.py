"""Rows of a report for the tests of gates and verdicts."""

from dataclasses import replace

from edgeship.toolkit.core.results import LatencySummary, Paired, Variant


def latency(p50):
    return LatencySummary(batch=1, p50=p50, p90=p50, p99=p50, mean=p50, runs=100, p50_ci95=(p50, p50))


def paired(lost, won, images):
    return Paired("onnxruntime-fp32", images, lost, won, 1.0, 0.0, 0.0, (), lost + won, False, (), ())


FP32 = Variant(
    "openvino-fp32", "openvino", "fp32", False, kind="measured", runs_here=True, latency_ms=latency(6.0)
)
INT8 = replace(
    FP32, name="openvino-int8", precision="int8", drop_pp=0.4, drop_ci95_pp=(0.1, 0.8), speedup=3.0,
    speedup_ci95=(3.0, 3.0), speedup_over=FP32.name, latency_ms=latency(2.0),
)  # fmt: skip
SIMULATED = Variant(
    "tensorrt-int8", "tensorrt", "int8", False, kind="simulated", drop_pp=0.1, drop_ci95_pp=(-0.2, 0.4)
)
