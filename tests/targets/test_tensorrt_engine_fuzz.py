"""Seeded mutants of engine records: refused with a hint, or read with figures that the text supports."""

import copy
import json
import math
import random
import re
import tracemalloc

import pytest
from engine_records import FP32, INT8, dynamic, log, names_only, two_profiles

from edgeship.targets.tensorrt import engine_analysis, engine_files
from edgeship.toolkit.core.errors import DataError, ToolkitError

PRECISIONS = {"int8", "fp8", "fp16", "bf16", "fp32", "unknown"}
EVIDENCE = {
    "int8": r"int8|i8",
    "fp16": r"fp16|half|f16|h\d+",
    "fp32": r"fp32|float|f32",
    "fp8": r"fp8|e4m3|e5m2",
    "bf16": r"bf16|bfloat",
}


def static():
    content = dynamic()
    for number, item in enumerate(content["Layers"]):
        for tensor in (*item["Inputs"], *item["Outputs"]):
            tensor["Format/Datatype"] = FP32 if number in (0, 5) else INT8
    return content


def mutants(seed, count):
    """Yield damaged records: (file name, bytes)."""
    rng = random.Random(seed)
    values = [
        None,
        True,
        -1,
        1e308,
        10**30,
        "",
        "N/A",
        "Int8",
        "\x1e",
        [],
        {},
        [{}],
        {"Type": "Int8"},
        "[profile 1]",
        "PWN((",
    ]
    for _ in range(count):
        content = copy.deepcopy(rng.choice([dynamic, names_only, two_profiles, static])())
        for _ in range(rng.randrange(4)):
            _damage(content, rng, values)
        kind = rng.choice(["json", "json", "log"])
        try:
            text = log(content, rng.random() < 0.5) if kind == "log" else json.dumps(content)
        except (TypeError, KeyError, ValueError, AttributeError):
            text = json.dumps(content)
        data = text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]))
        for _ in range(rng.choice([0, 0, 1, 3])):
            data = _cut(data, rng)
        yield f"m.{kind}", data


def _damage(content, rng, values):
    layers = content.get("Layers")
    if not isinstance(layers, list) or not layers or rng.random() < 0.1:
        content[rng.choice(["Layers", "Bindings", "times_ms", "layers"])] = rng.choice(values)
        return
    place = rng.randrange(len(layers))
    if rng.random() < 0.2:
        layers[place] = rng.choice([layers[rng.randrange(len(layers))], *values])
    elif isinstance(layers[place], dict):
        target = layers[place]
        if rng.random() < 0.5 and isinstance(target.get("Inputs"), list) and target["Inputs"]:
            target = target["Inputs"][0]
        if isinstance(target, dict) and target:
            key = rng.choice(sorted(target))
            target[key] = rng.choice(values)
            if rng.random() < 0.3:
                del target[key]


def _cut(data, rng):
    place = rng.randrange(len(data) + 1)
    width = rng.choice([1, 2, 40])
    filler = rng.choice([b"", bytes([rng.randrange(256)]), data[place : place + 60], b"\n", b'"', b"}]"])
    return data[:place] + filler + data[place + width :]


def check(path):
    """Read a record: a refusal with a hint, or figures that the text supports."""
    try:
        result = engine_analysis.explain(path)
    except ToolkitError as error:
        assert error.hint
        return False
    text = engine_files._text(path).lower()
    for each in (result, *result.other_profiles):
        weighted = [item for item in each.layers if item.weighted]
        assert sum(each.precisions.values()) == len(weighted)
        assert {item.precision for item in each.layers} <= PRECISIONS
        for item in each.layers:
            assert item.precision == "unknown" or re.search(EVIDENCE[item.precision], text)
        if each.precisions.get("unknown"):
            assert "nothing to change" not in each.verdict and "--profilingVerbosity=detailed" in each.verdict
        times = [item.time_ms for item in each.layers if item.time_ms is not None]
        assert all(math.isfinite(time) and time >= 0 for time in times)
        assert each.time_ms is None or each.time_ms >= max(times, default=0.0)
    return True


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_records_are_refused_or_read_right(count, tmp_path):
    tracemalloc.start()
    read = 0
    for name, data in mutants(22, count):
        (tmp_path / name).write_bytes(data)
        read += check(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count / 10 < read < count
    assert peak < 50 << 20


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "graph.json").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match="64 MiB"):
        engine_analysis.explain(tmp_path / "graph.json")
