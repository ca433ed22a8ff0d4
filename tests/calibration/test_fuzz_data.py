"""Mutated lists, checkpoints, archives, arrays and images load, or raise with a hint, within limits."""

import functools
import io
import json
import random
import signal
import tarfile
import warnings
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from measured import peak
from PIL import Image
from safetensors.torch import save as safetensors

from edgeship.calibration.class_names import read_class_aliases
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.images import decode
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models import weights
from edgeship.toolkit.models.resnet import architecture, build
from edgeship.toolkit.pipeline.fingerprints import fingerprint

SECONDS, MEGABYTES = 2, 500  # of one input
HANGS = 20  # seconds
TOKENS = (
    *(b"0", b"-1", b"1e309", b"999999999999", b"9" * 5000, b"nan", b"\0", b"\xff\xfe", b"\r", b"\n\n"),
    *(b'"', b"'", b",", b";", b"\t", b"../../../etc/passwd", b"/dev/zero", b"\xe2\x80\xae", b"\x1b[31m"),
    *(b"[" * 3000, b"{", b"}", b"(", b")", b"\\", b"PK\x03\x04", b"\x80\x02", b"None", b"a.jpg"),
)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def encoded(kind, **options):
    stream = io.BytesIO()
    picture().save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def network():
    """Return the tensors of a small ResNet."""
    return build(architecture("resnet20", width=2, classes=3), seed=0).state_dict()


def torch_file(legacy=False):
    stream = io.BytesIO()
    torch.save({"state_dict": network(), "epoch": 3}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def described():
    description = {"schema": 1, "architecture": architecture("resnet20", width=2, classes=3)}
    fields = weights.canonical_json({**description, "preprocess": Preprocess(32, 32)})
    return safetensors(
        {key: value.contiguous() for key, value in network().items()}, {weights.METADATA: fields}
    )


def packed_zip():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog\\1.png", "ant/"):
            archive.writestr(name, encoded("PNG") if name.endswith("g") else b"")
    return stream.getvalue()


def packed_tar(mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name in ("cat/0.png", "cat/" + "é" * 120 + ".png", "dog/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded("PNG"))
            archive.addfile(info, io.BytesIO(encoded("PNG")))
    return stream.getvalue()


def array(save=np.save, **options):
    stream = io.BytesIO()
    values = np.stack([np.asarray(picture(seed)) for seed in range(4)])
    if save is np.save:
        save(stream, values)
    else:
        save(stream, x=values, y=np.array([0, 1, 1, 0]), **options)
    return stream.getvalue()


def listed(separator):
    rows = [("file", "label"), ("0.png", "cat"), ("1.png", "dog"), ('"a b.png"', "cat"), ("2.png", "dog")]
    return "\n".join(separator.join(row) for row in rows).encode()


def names(form):
    table = {str(index): [f"n0000000{index}", f"class {index}"] for index in range(5)}
    if form == "json":
        return json.dumps(table).encode()
    return "\n".join(f"{index},{row[1]}" for index, row in table.items()).encode()


def use_images(path):
    dataset = open_dataset(path)
    fingerprint(path, path.parent / "memory")
    assert len(dataset.listing_digest()) == 64 and len(dataset.fingerprint()) == 64
    for index in range(min(len(dataset), 5)):
        try:
            dataset.image(index)
        except ToolkitError as error:
            check(error)
    if dataset.labelled:
        open_dataset(path, labelled=True)


FORMS = {  # file name -> bytes and the function under test
    "comma.csv": (lambda: listed(","), use_images),
    "space.txt": (lambda: listed(" "), use_images),
    "tab.tsv": (lambda: listed("\t"), use_images),
    "names.json": (lambda: names("json"), read_class_aliases),
    "names.csv": (lambda: names("csv"), read_class_aliases),
    "net.pth": (torch_file, weights.load),
    "legacy.pth": (lambda: torch_file(legacy=True), weights.load),
    "net.safetensors": (described, weights.load),
    "a.zip": (packed_zip, use_images),
    "a.tar": (packed_tar, use_images),
    "a.tar.gz": (lambda: packed_tar("w:gz"), use_images),
    "a.npy": (array, use_images),
    "a.npz": (lambda: array(np.savez), use_images),
    "b.npz": (lambda: array(np.savez_compressed), use_images),
    **{
        f"a.{kind.lower()}": (functools.partial(encoded, kind), lambda path: decode(path.read_bytes(), "x"))
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    },
}


def mutated(data, rng):
    """Change bytes: flips, numbers at their limits, tokens, and slices removed, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1) if rng.random() < 0.5 else min(rng.randrange(400), len(data))
        length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            value = rng.choice((0, 1, -1, 127, -128, 255, 1 << 15, (1 << 31) - 1, -(1 << 31), 1 << 40, -2))
            order, size = rng.choice(("little", "big")), rng.choice((1, 2, 4, 8))
            data[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)
        elif kind == 2:
            data[place:place] = rng.choice(TOKENS)
        elif kind == 3:
            token = rng.choice(TOKENS)
            data[place : place + len(token)] = token
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = data[place : place + length] * rng.choice((1, 1, 30))
        else:
            other = rng.randrange(len(data) + 1)
            data[place : place + length] = data[other : other + length]
        if rng.random() < 0.02:
            del data[place:]
    return bytes(data)


def mutated_inside(data, rng):
    """Mutate one member of a zip whose archive stays valid."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as archive:
        chosen = min(rng.randrange(len(source.infolist())), rng.randrange(len(source.infolist())))
        for number, info in enumerate(source.infolist()):
            content = source.read(info)
            archive.writestr(info, mutated(content, rng) if number == chosen else content, info.compress_type)
    return stream.getvalue()


def check(error):
    """Check an error: a printable line, a hint, and no advice to load code."""
    text = str(error)
    assert error.hint and "\n" not in error.hint
    assert text.isprintable() and len(text) < 2500, repr(text[:500])
    assert "weights_only" not in text + error.hint


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
