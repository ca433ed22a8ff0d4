"""Random damage to every kind of file of the store: each later run gives the same results as the first."""

import hashlib
import json
import random

import pytest
import torch

from edgeship.toolkit.core.artifact import sha256_tree
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run

MEASURED = ("bench", "report")  # their times differ from run to run
TIMED = {"compile": "compiled.json", "evaluate": "time.json"}  # has the times of layers, of the evaluation
KINDS = ("bit", "digit", "cut", "page", "field")


def outcome(finished):
    """Return the digests of all results that do not depend on time."""
    digests = {
        stage.name: sha256_tree(stage.folder) for stage in finished.stages if stage.name not in MEASURED
    }
    for stage, timed in TIMED.items():
        folder = finished.folder(stage)
        digests[stage] = {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and path.name != timed
        }
    return digests


def damaged(rng, kind, data):
    """Return changed bytes, or None if this kind of damage does not apply."""
    position = rng.randrange(len(data))
    if kind == "bit":
        return data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :]
    if kind == "cut":
        return data[:position]
    if kind == "page":
        return data[:position] + bytes(min(4096, len(data) - position)) + data[position + 4096 :]
    if kind == "digit":
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        if not digits:
            return None
        position = rng.choice(digits)
        return data[:position] + bytes([48 + (data[position] - 47) % 10]) + data[position + 1 :]
    try:
        content = json.loads(data)
    except ValueError:
        return None
    fields = content.get("content", content) if isinstance(content, dict) else None
    if not isinstance(fields, dict) or not fields:
        return None
    fields[rng.choice(list(fields))] = rng.choice([None, 7, "x", [], {}, -1])
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "changes", [6, pytest.param(250, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_damage_never_changes_a_result(changes, tmp_path):
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), tmp_path)
    recipe = Recipe.build(
        {
            "load": {"weights": str(tmp_path / "model.safetensors")},
            "export": {"size": 16},
            "select": {"source": "digits:train", "images": 12},
            "quantize": {"effort": "fast"},
            "compile": {"targets": ["openvino", "onnxruntime"]},
            "evaluate": {"source": "digits:test", "images": 40},
            "bench": {"runs": 3, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )
    store = Store(tmp_path / "store")
    expected = outcome(run(recipe, store=store))
    rng = random.Random(changes)
    for number in range(changes):
        files = [
            path
            for path in (tmp_path / "store").rglob("*")
            if path.is_file() and path.stat().st_size and not {"locks", "CACHEDIR.TAG"} & set(path.parts)
        ]
        path, kind = rng.choice(sorted(files)), KINDS[number % len(KINDS)]
        data = path.read_bytes()
        change = damaged(rng, kind, data)
        if change is None or change == data:
            continue
        path.write_bytes(change)
        redo = rng.choice([(), (), ("quantize",), ("compile",), ("evaluate",)])
        assert outcome(run(recipe, store=store, redo=redo)) == expected, (kind, path)
