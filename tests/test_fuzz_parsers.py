"""Mutated files of every format that is read: used, or refused with a hint, in bounded time and memory."""

import io
import random
import signal
import warnings
import zipfile
from contextlib import contextmanager

import pytest
from measured import peak
from parser_inputs import FORMS, check, encoded, mutated, mutated_inside
from PIL import Image

from edgeship.toolkit.core.errors import ToolkitError

SECONDS, MEGABYTES = 2, 500  # of one input
HANGS = 20  # seconds


@contextmanager
def no_hang():
    def stop(_number, _frame):
        raise TimeoutError(f"more than {HANGS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(folder, name, count, start=0):
    """Process mutated files of a format; return the number of errors."""
    make, use = FORMS[name]
    whole = make()
    for place in ("0.png", "1.png", "2.png", "a b.png"):
        (folder / place).write_bytes(encoded("PNG"))
    refused = 0
    for seed in range(start, start + count):
        rng = random.Random(f"{name} {seed}")
        inside = zipfile.is_zipfile(io.BytesIO(whole)) and rng.random() < 0.6
        data = mutated_inside(whole, rng) if inside else mutated(whole, rng)
        (folder / name).write_bytes(data)
        try:
            with no_hang(), warnings.catch_warnings(), peak(collect=seed % 50 == 0) as used:
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                use(folder / name)
        except ToolkitError as error:
            refused += 1
            check(error)
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
        assert used.seconds < SECONDS and used.megabytes < MEGABYTES, f"{name}, seed {seed}: {used}"
    return refused


@pytest.mark.parametrize("name", FORMS)
def test_a_file_that_is_whole_is_used(tmp_path, name):
    assert fuzz(tmp_path, name, 0) == 0
    (tmp_path / name).write_bytes(FORMS[name][0]())
    FORMS[name][1](tmp_path / name)


@pytest.mark.parametrize("name", FORMS)
def test_a_few_mutated_files(tmp_path, name):
    fuzz(tmp_path, name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_many_mutated_files(tmp_path, name):
    refused = fuzz(tmp_path, name, 1000)
    assert refused > 30  # the mutations have an effect
