"""Small valid files of every format that is read, the functions that read them, and mutations."""

import functools
import hashlib
import io
import json
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from engine_records import dynamic, log, two_profiles
from float_graphs import Graph
from PIL import Image
from safetensors.torch import save as safetensors
from synthetic import STAGES, synthetic_run

from edgeship.calibration.class_names import read_class_aliases
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.images import decode
from edgeship.targets.runner import facts, failures, trtexec
from edgeship.targets.tensorrt import engine_analysis, engine_info
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.text import SPACES
from edgeship.toolkit.deploy import bundle, inventory, layout
from edgeship.toolkit.graph import load
from edgeship.toolkit.models import weights
from edgeship.toolkit.models.resnet import architecture, build
from edgeship.toolkit.pipeline.fingerprints import fingerprint
from edgeship.toolkit.pipeline.recipe import Recipe, as_toml
from edgeship.toolkit.report import render
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.runs.index import RunIndex

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


def recipe_text():
    table = {"load": {"weights": "train"}, "compile": {"targets": ["openvino"]}, "export": {"size": "64x96"}}
    text = as_toml(Recipe.build({**table, "report": {"max_drop_pp": 1.5}}), commented=True)
    return re.sub(r"^# (\w+ = .+)$", r"\1", text, flags=re.MULTILINE).encode()


def devices():
    return (
        b'[defaults]\nuser = "jetson"\n[devices.nano-1]\nhost = "10.0.0.2"\ntarget = "tensorrt"\n'
        b'port = 22\ntags = ["shop"]\nroot = "~/edgeship"\npython = "python3 -u"\n'
    )


def few(value):
    """Shorten long lists, and tables of many layers: a mutation rather meets what is read."""
    if isinstance(value, dict):
        layers = len(value) > 12 and all(isinstance(each, dict) for each in value.values())
        return {key: few(each) for key, each in list(value.items())[: 3 if layers else None]}
    if isinstance(value, list):
        return [few(each) for each in value[: 3 if len(value) > 12 else None]]
    return value


@functools.cache
def report_text():
    with tempfile.TemporaryDirectory() as folder:
        run = synthetic_run(Path(folder), images=60)
        report = gather(run, recipe={"quantize": {"effort": "max"}}, stages=STAGES, command="edgeship run x")
    return json.dumps(few(plain(report))).encode()


def index_text():
    stage = {"name": "load", "folder": "/tmp/x", "digest": "0" * 64, "seconds": 0.5, "cached": False}
    index = {"schema": 1, "recipe": {"bench": {"threads": 1}}, "command": "edgeship run x", "stages": [stage]}
    return json.dumps({**index, "files": ["report.json"]}).encode()


def bundle_file():
    stream = io.BytesIO()
    files = {"graphs/openvino.onnx": b"graph", layout.RUNNER: b"runner"}
    target = {"variant": "openvino-int8", "precision": "int8", "simulated": None}
    manifest = {
        "schema": 1,
        "name": "x",
        "gates": {},
        "provenance": {},
        "targets": {"openvino": target},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), "targets": []}
            for name, data in files.items()
        },
    }
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in {layout.MANIFEST: json.dumps(manifest).encode(), **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def onnx_file():
    g = Graph((8, 8), seed=1)
    x = g.unary("Relu", g.conv("images", 4))
    return g.head(g.add(g.conv(x, 4), x), classes=3).model().SerializeToString()


def use_record(path):
    engine_analysis.explained(engine_info.load(path), {})


def use_report(path):
    report = render.load(path)
    render.markdown(report)
    render.junit(report)


def use_device_text(path):
    """Parse what a device prints: no error may come of it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    facts.tegrastats(text)
    failures.translate(text)
    failures.quote(text)
    try:
        trtexec._parse(text)
    except failures.Failure as error:
        assert error.cause and error.cure


TEGRASTATS = (
    b"RAM 3000/7772MB (lfb 4x4MB) SWAP 0/3886MB CPU [10%@1510,off] EMC_FREQ 0%@2133 GR3D_FREQ 45%@624 "
    b"CPU@46.5C GPU@45C VDD_IN 5000mW/4800mW VDD_CPU_GPU_CV 900mW/850mW\n"
)
TIMES = json.dumps(
    [{"startH2dMs": 0.0, "endH2dMs": 0.1, "h2dMs": 0.1, "computeMs": 1.5, "d2hMs": 0.1, "latencyMs": 1.7}] * 3
).encode()


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
    "graph.json": (lambda: json.dumps(dynamic()).encode(), use_record),
    "profiles.json": (lambda: json.dumps(two_profiles()).encode(), use_record),
    "trtexec.log": (lambda: log(dynamic()).encode(), use_record),
    "tegrastats.txt": (lambda: TEGRASTATS, use_device_text),
    "times.json": (lambda: TIMES, use_device_text),
    "net.onnx": (onnx_file, lambda path: load.load(path, float_only=True)),
    "recipe.toml": (recipe_text, Recipe.read),
    "devices.toml": (devices, inventory.load),
    "report.json": (report_text, use_report),
    "run.json": (index_text, lambda path: RunIndex.read(path.parent)),
    "bundle.tar": (bundle_file, bundle.load),
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
    assert all(c.isprintable() or c in SPACES for c in text) and len(text) < 2500, ascii(text[:500])
    assert "weights_only" not in text + error.hint
