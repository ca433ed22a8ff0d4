"""The wheel in an environment of its own: the API runs, and nothing but edgeship lands in site-packages."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, sys
import numpy as np
import edgeship
assert edgeship.__file__.startswith(sys.prefix), edgeship.__file__
import torch
torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
images = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
result = edgeship.quantize(torch.nn.Sequential(*layers), images, effort="fast")
file = result.save("int8.onnx")
(classified,) = edgeship.Classifier(file).classify_inputs(images[:1])
print(edgeship.__version__, result.images, len(classified.labels))
"""


@pytest.mark.slow
def test_the_wheel_runs_and_leaves_nothing_generic(tmp_path):
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, *build], **run)
    (wheel,) = tmp_path.glob("edgeship-*.whl")
    own = tmp_path / "venv"
    venv.create(own, system_site_packages=True, with_pip=False)
    (site,) = own.glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], **run)
    assert [each.name for each in site.iterdir() if not each.name.startswith("edgeship")] in ([], ["bin"])
    outside = [path for path in sys.path if "site-packages" in path]
    environment = {"PYTHONPATH": ":".join([str(site), *outside]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(own / "bin" / "python"), "-c", SCRIPT], env=environment, **run)
    assert done.stdout.split()[1:] == ["4", "4"]
