"""A GPU that is a fake: what goes to TensorRT and what comes back, in bytes; and the folder for a device."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import FLOAT, TENSORRT, images, residual_net, save

from edgeship.targets import tensorrt
from edgeship.targets.runner import cuda
from edgeship.targets.runner.backend import Built
from edgeship.targets.runner.failures import Failure
from edgeship.targets.tensorrt import jetson_folder, local_gpu
from edgeship.toolkit.core.artifact import sha256_file
from edgeship.toolkit.core.errors import DataError, DeviceError, TargetError


class FakeSession:
    """Logits are the mean of each channel; takes at most four images."""

    batch, batch_max, takes_pixels = None, 4, False

    def __init__(self):
        self.prepared = []

    def prepare(self, batch, transfers, cuda_graph):
        self.prepared.append(batch)

    def load(self, data):
        self._images = np.frombuffer(data, np.float32).reshape(self.prepared[-1], 3, 32, 32)

    def step(self):
        return {"wall_ms": 0.1}

    def logits(self):
        return self._images.mean((2, 3)).astype(np.float32).tobytes()

    def layers(self, profile):
        tensor = {"Name": "images", "Format/Datatype": "Int8"}
        conv = {"Name": "k1", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv1]"}
        return {
            "layers": [conv | {"Inputs": [tensor], "Outputs": [tensor | {"Name": "logits"}]}],
            "bindings": [],
            "times_ms": {"k1": 0.5},
        }

    def close(self):
        self.closed = True


class FakeBackend:
    version = "10.3.0.30"

    def __init__(self):
        self.session = FakeSession()

    def build(self, graph, options, timing_cache, scratch):
        self.graph, self.options = onnx.load(graph), options
        return Built(b"a plan", ["a warning"])

    def open(self, engine, precision, threads, profile):
        if engine != b"a plan":
            raise Failure("plan", "cannot load", "the plan is of another version", "build it again here")
        return self.session


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeBackend()
    monkeypatch.setattr(local_gpu, "available", lambda: True)
    monkeypatch.setattr(local_gpu.backends, "load", lambda name: fake)
    return fake


def test_a_gpu_builds_audits_and_runs(gpu, tmp_path):
    compiled = tensorrt.TARGET.compile(
        save(residual_net(TENSORRT), tmp_path / "net.onnx"), tmp_path / "out", "int8"
    )
    assert compiled.runs_here
    assert compiled.note == "built for this GPU by TensorRT 10.3.0.30"
    assert compiled.warnings == ("a warning",)
    assert [(layer.name, layer.precision, layer.time_ms) for layer in compiled.audit] == [
        ("conv1", "int8", 0.5)
    ]
    assert gpu.options.precision == "int8"
    ten = images(10)
    with tensorrt.TARGET.open(tmp_path / "out" / compiled.file) as session:
        np.testing.assert_allclose(session.infer(ten), ten.mean((2, 3)), atol=1e-6)
    assert set(gpu.session.prepared) == {1, 4}  # the audit, then parts of four
    assert gpu.session.closed
    assert tensorrt.TARGET.versions()["tensorrt"] == "10.3.0.30"


def test_from_version_11_on_the_graph_carries_the_types(gpu, tmp_path):
    gpu.version = "11.4.1"
    local_gpu.build(save(residual_net(TENSORRT), tmp_path / "net.onnx"), "int8")
    kinds = {item.data_type for item in gpu.graph.graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds


def test_a_plan_that_does_not_load_says_why_and_what_to_do(gpu, tmp_path):
    (tmp_path / "model.plan").write_bytes(b"another")
    with (
        pytest.raises(TargetError, match="another version") as caught,
        local_gpu.opened(tmp_path / "model.plan"),
    ):
        pass
    assert caught.value.hint == "build it again here"


def test_the_folder_for_a_device_is_whole_and_consistent(tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    plain = save(residual_net(FLOAT), tmp_path / "float.onnx")
    done = jetson_folder.write(
        model, tmp_path / "out", version="8.5.2", module="AGX Orin", plain=plain, dla_core=0
    )
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert set(manifest["files"]) == set(done.files) - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert sha256_file(done.folder / name) == digest
    assert set(manifest["builds"]) == {"int8", "fp16", "dla"}
    assert "--calib=dla/calib.cache" in manifest["builds"]["dla"]["trtexec"]
    readme = (done.folder / "README.md").read_text()
    assert readme.count("\npython3 edgeship_runner.pyz ") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "net.onnx", "out"]


def test_the_two_commands_are_the_runners_own(tmp_path):
    """The commands of the README are typed here, with ONNX Runtime in place of a Jetson's TensorRT."""
    folder = tmp_path / "out"
    jetson_folder.write(
        save(residual_net(TENSORRT), tmp_path / "net.onnx"), folder, version="10.3", module="Orin Nano"
    )
    build, selftest = [
        line.split()
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("python3 ")
    ]
    for line, more in ((build, ["--backend", "onnxruntime", "--cache", "cache"]), (selftest, [])):
        done = subprocess.run([sys.executable, *line[1:], *more], cwd=folder, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["ok"], result
    assert result["verdict"] == "pass"


def test_a_newer_tensorrt_gets_fp16_typed_graphs(tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    jetson_folder.write(model, tmp_path / "out", version="11.4", module="Thor")
    written = onnx.load(tmp_path / "out" / "model-int8.onnx")
    assert onnx.TensorProto.FLOAT not in {item.data_type for item in written.graph.initializer}


def test_the_oldest_gets_trtexec_alone(tmp_path):
    model = save(residual_net(TENSORRT, opset=13), tmp_path / "net.onnx")
    jetson_folder.write(model, tmp_path / "out", version="8.2.1", module="AGX Xavier")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "python3" not in readme
    assert readme.count("/usr/src/tensorrt/bin/trtexec") == 2


def test_the_oldest_readme_has_every_plan_that_was_asked_for(tmp_path):
    model = save(residual_net(TENSORRT, opset=13), tmp_path / "net.onnx")
    plain = save(residual_net(FLOAT, opset=13), tmp_path / "float.onnx")
    where = {"version": "8.2", "module": "Jetson Xavier NX Developer Kit"}
    jetson_folder.write(model, tmp_path / "out", plain=plain, dla_core=1, **where)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    readme = (tmp_path / "out" / "README.md").read_text()
    assert (manifest["tensorrt"], manifest["module"]) == ("8.2.1", "Xavier NX")
    for name in ("int8", "fp16", "dla"):
        assert f"# {name}\n{manifest['builds'][name]['trtexec']}\n" in readme
        saved = re.search(r"--saveEngine=(\S+)", manifest["builds"][name]["trtexec"])[1]
        loads = [line for line in readme.splitlines() if f"--loadEngine={saved} " in line]
        assert [line.endswith("--useDLACore=1") for line in loads] == [name == "dla"]
    assert "--layerPrecisions=" not in readme and "has no --layerPrecisions" in readme


def test_a_dla_with_a_large_pool_is_warned_of(tmp_path):
    model = save(residual_net(TENSORRT, size=64), tmp_path / "net.onnx")
    done = jetson_folder.write(model, tmp_path / "out", version="8.5", module="AGX Orin", dla_core=0)
    assert [text for text in done.warnings if "pooling window is 16x16" in text]


@pytest.mark.parametrize(
    ("version", "module", "error"),
    [("10.3", "Jetson Nano", DeviceError), ("10.3", "PC", DeviceError)],
    ids=["no INT8", "unknown module"],
)
def test_a_folder_that_would_not_work_is_not_written(version, module, error, tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    with pytest.raises(error) as caught:
        jetson_folder.write(model, tmp_path / "out", version=version, module=module)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    with pytest.raises(DataError, match="not an empty folder"):
        jetson_folder.write(model, tmp_path, version="10.3", module="Orin Nano")


def test_the_cuda_runtime_of_nvidias_wheels_is_used(tmp_path, monkeypatch):
    """The extra `tensorrt` brings no /usr/local/cuda."""
    library = tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12"
    library.parent.mkdir(parents=True)
    with Path("/proc/self/maps").open() as maps:  # any library will do
        shutil.copyfile(next(line.split()[-1] for line in maps if "/libm.so" in line), library)
    for name in ("_SONAMES", "_FOLDERS"):
        monkeypatch.setattr(cuda, name, ())
    monkeypatch.setattr(cuda.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(cuda.sys, "path", [str(tmp_path)])
    assert cuda._load()._name == str(library)
    monkeypatch.setattr(cuda.sys, "path", [])
    with pytest.raises(Failure, match="no libcudart"):
        cuda._load()
