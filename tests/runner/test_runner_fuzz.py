"""Seeded mutants of what devices print: no exception, no number that the text lacks, bounded memory."""

import json
import random
import re
import time
import tracemalloc

import numpy as np
import pytest
from engine_records import dynamic, log
from runner.jetson_tree import NANO, ORIN_NANO, lay
from runner.test_runner_facts import PARSERS, _leaves

from edgeship.targets.runner import evalset, failures, sysfs, trtexec, write_golden
from edgeship.targets.runner.failures import Failure
from edgeship.targets.tensorrt import jetson, versions
from edgeship.toolkit.core.errors import ToolkitError

MANY = [300, pytest.param(10_000, marks=pytest.mark.slow)]
PEAK_BYTES = 20 << 20
ALPHABET = "0123456789 .,:/@%[](){}<>mWCRr-+=\n\t\0\x1b\x85\u2028\u0663\ufeffNVDGPU_#é"
FILLERS = [
    "",
    "9" * 400,
    "1e999",
    "-",
    "nan",
    "\n\n",
    "\0",
    "%@[",
    "..",
    "mW/",
    "٣٤",
    "\ufeff",
    " " * 2000,
    "R36 (release)",
]


def damaged(text, rng):
    """Return a text with one to four pieces replaced, repeated or moved."""
    for _ in range(rng.randrange(1, 5)):
        place, width = rng.randrange(len(text) + 1), rng.choice([0, 1, 3, 30])
        piece = rng.choice([rng.choice(FILLERS), rng.choice(ALPHABET), text[place : place + 60], text[:200]])
        text = text[:place] + piece + text[place + width :]
    return text


def bounded(parse, inputs):
    """Call a parser with every input; none takes long or much memory."""
    tracemalloc.start()
    try:
        for text in inputs:
            started = time.process_time()
            yield text, parse(text)
            assert time.process_time() - started < 2.0, str(text)[:200]
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", MANY)
def test_texts_of_the_system(count):
    for name, (parse, sample) in PARSERS.items():
        rng = random.Random(name)
        for text, result in bounded(
            parse, (damaged(sample, rng) for _ in range(max(count // len(PARSERS), 20)))
        ):
            for leaf in _leaves(result).values():
                _supported(leaf, text)


def _supported(leaf, text):
    """Assert that a number is in the text: as it is, in thousands, or in KiB."""
    if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
        numbers = {float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", text, re.ASCII)}
        assert {float(leaf), leaf / 1000, leaf / 1024} & numbers, (leaf, text)


@pytest.mark.parametrize("count", MANY)
def test_logs_are_quoted_and_never_explained_by_what_is_no_error(count):
    rng = random.Random(1)
    samples = [
        log(dynamic(), True),
        "[01/02/2026-10:00:00] [E] Error[4]: [network.cpp::validate::1] Error Code 4: Internal Error (x)\n"
        "[01/02/2026-10:00:01] [W] [TRT] Could not find libnvdla_compiler.so\n&&&& FAILED TensorRT.trtexec\n",
        "terminate called after throwing an instance of 'std::bad_alloc'\n what():  std::bad_alloc\n",
        "Traceback (most recent call last):\nImportError: libnvinfer.so.8: cannot open shared object file\n",
    ]
    for text, quoted in bounded(failures.quote, (damaged(rng.choice(samples), rng) for _ in range(count))):
        lines = failures.error_lines(text)
        assert all(line in text for line in lines)
        known = failures.translate(text)
        assert known is None or any(re.search(known.pattern, line) for line in lines)
        assert len(quoted) <= 2 * 1000 + 10
        assert failures.from_error(RuntimeError(text), logged=text).cure


@pytest.mark.parametrize("count", MANY)
def test_times_of_trtexec_are_refused_or_those_of_the_file(count):
    rng = random.Random(2)
    part = {
        "startComputeMs": 1.0,
        "computeMs": 0.5,
        "latencyMs": 0.75,
        "h2dMs": 0.1,
        "d2hMs": 0.15,
        "enqMs": 0.2,
    }
    sample = json.dumps([{**part, "computeMs": 0.5 + i / 100} for i in range(20)])

    def parse(text):
        try:
            return trtexec._parse(text)
        except Failure as failure:
            assert failure.cause and failure.cure
            return None

    read = 0
    inputs = (damaged(sample, rng) if rng.random() < 0.9 else sample for _ in range(count))
    for text, result in bounded(parse, inputs):
        if result is None:
            continue
        read += 1
        values = [item["computeMs"] for item in json.loads(text)]
        assert result["runs"] == len(values)
        assert min(values) <= result["gpu_ms"]["median"] <= max(values)
    assert count / 20 < read < count


@pytest.mark.parametrize("value", [10**400, 1.7e308, 1e10, -1, True, None, "5", float("nan")])
def test_times_that_no_inference_takes_are_refused(value):
    with pytest.raises(Failure, match="cannot be read"):
        trtexec._parse(json.dumps([{"computeMs": 0.5}, {"computeMs": value}, {"computeMs": value}]))


NAMES = (
    "NVIDIA Jetson AGX Orin Developer Kit",
    "Orin NX (16 GB)",
    "reComputer J4012",
    "Jetson TX2i",
    "T5000",
    "p3767-0005",
)
RELEASES = (
    "JetPack 6.0 DP",
    "R36.4.3",
    "36.4.3-20250107174145",
    "6.2+b77",
    "# R36 (release), REVISION: 4.3, GCID: 1",
)
VERSIONS = ("10.3.0.30-1+cuda12.5", "8.5.2", "11.4", "10.16.2.11")


@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize(
    ("parse", "samples"),
    [(jetson.module, NAMES), (jetson.release_name, RELEASES), (versions.rules, VERSIONS)],
    ids=["modules", "releases", "versions"],
)
def test_names_are_found_in_the_table_or_refused_with_a_hint(parse, samples, count):
    rng = random.Random(3)

    def attempt(text):
        try:
            return parse(text)
        except ToolkitError as error:
            assert error.hint and str(error)
            return None

    read = 0
    for text, result in bounded(attempt, (damaged(rng.choice(samples), rng) for _ in range(count))):
        read += result is not None
        if (
            parse is jetson.release_name and result is not None
        ):  # the numbers of the answer were given, or its L4T
            rows = [line for line in jetson.JETPACKS if result in line.releases]
            given = [*(l4t for line in rows for l4t in line.l4t), result]
            assert any(all(part in text for part in name.split(".") if part != "0") for name in given), (
                text,
                result,
            )
    assert 0 < read < count


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_golden_folders_are_read_whole_or_refused(count, tmp_path):
    rng, whole = random.Random(5), tmp_path / "whole"
    images, logits = np.ones((3, 3, 4, 4), np.float32), np.arange(15, dtype=np.float32).reshape(3, 5)
    write_golden(whole, images, logits, {1: b"a picture"})
    names = sorted(path.name for path in whole.iterdir())

    def read(number):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_bytes((whole / name).read_bytes())
        victim = folder / rng.choice(names)
        text = damaged(victim.read_bytes().decode("latin-1"), rng)
        victim.write_bytes(text.encode("latin-1", "replace"))
        try:
            return evalset.golden(str(folder))
        except (Failure, OSError) as error:
            assert isinstance(error, OSError) or error.cure
            return None

    for _, result in bounded(read, range(count)):
        if result is not None:
            assert (
                result.images == images.tobytes() and [list(row) for row in result.logits] == logits.tolist()
            )


@pytest.mark.parametrize("count", [40, pytest.param(2_000, marks=pytest.mark.slow)])
def test_trees_of_boards_give_facts_or_nothing(count, tmp_path):
    rng = random.Random(4)
    for number in range(count):
        files = dict(rng.choice([ORIN_NANO, NANO]))
        for name in rng.sample(sorted(files), rng.randrange(1, 6)):
            if rng.random() < 0.2:
                del files[name]
            elif not files[name].startswith("#!"):
                files[name] = damaged(files[name], rng)
        root = lay(tmp_path / str(number), files)
        gathered = sysfs.gather(sysfs.Tree(str(root)), str(root))
        json.dumps(gathered, allow_nan=False)
        for sensor, celsius in sysfs.heat(sysfs.Tree(str(root))).items():
            assert -100 < celsius < 200, sensor
