"""Names of TensorRT's Python API that the runner, the builder and the fakes use, against NVIDIA's bindings.

The wheels of the bindings cannot be imported without libnvinfer, but their library holds every name.
"""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeship.targets.tensorrt import builder, versions
from edgeship.targets.tensorrt.builder import BuildOptions
from edgeship.toolkit.core.errors import RecipeError

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "targets" / "runner" / "backends" / "tensorrt.py"
FAKE = ROOT / "tests" / "runner" / "fakes" / "tensorrt" / "__init__.py"
WHEELS = (
    *("tensorrt-bindings==8.6.1", "tensorrt-cu12-bindings==10.3.0", "tensorrt-cu12-bindings==10.7.0"),
    *("tensorrt-cu12-bindings==10.13.3.9", "tensorrt-cu12-bindings==11.4.0.106"),
    "tensorrt-cu13-bindings==11.4.0.106",
)
OBJECTS = {  # variables of the runner that hold objects of the SDK
    *("trt", "sdk", "kinds", "builder", "network", "parser", "config", "profile", "cache", "image"),
    *("inspector", "_sdk", "_engine", "_context", "_runtime"),
}
GUARDED = {"EXPLICIT_BATCH", "STRONGLY_TYPED", "builder_optimization_level"}  # used if present


def used(tree):
    """Return the attributes of SDK objects, also of their attributes and results."""
    names = set()
    for node in ast.walk(tree):
        base = node.value if isinstance(node, ast.Attribute) else None
        while base is not None:
            if getattr(base, "id", getattr(base, "attr", None)) in OBJECTS:
                names.add(node.attr)
                break
            base = getattr(base, "func", getattr(base, "value", None))
    return {name for name in names if not name.startswith("__")} - OBJECTS


def defined(tree):
    """Return the public classes of a module, and their methods and members."""
    names, blocks = set(), [tree]
    for block in blocks:  # grows
        blocks += [each for each in block.body if isinstance(each, (ast.ClassDef, ast.If))]
        inside = block is not tree
        names |= {each.name for each in block.body if isinstance(each, ast.ClassDef)}
        names |= {each.name for each in block.body if inside and isinstance(each, ast.FunctionDef)}
        if any(getattr(each, "id", "") == "IntEnum" for each in getattr(block, "bases", ())):
            assigned = [each for each in block.body if isinstance(each, ast.Assign)]
            found = [name for each in assigned for target in each.targets for name in ast.walk(target)]
            names |= {name.id for name in found if isinstance(name, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.fixture(scope="module", params=WHEELS)
def bindings(request, tmp_path_factory):
    """Return version and library of one wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d"]
    done = subprocess.run([*download, folder, request.param], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{request.param} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith("/tensorrt.so"))
        return request.param.partition("==")[2], archive.read(library)


def absent(names, library):
    return sorted(name for name in names if f"{name}\0".encode() not in library)


def test_the_names_are_read_from_the_sources():
    names = used(ast.parse(RUNNER.read_text(encoding="utf-8")))
    assert names >= {"execute_async_v3", "get_tensor_shape", "WORKSPACE", "DETAILED", "desc", *GUARDED}
    names = defined(ast.parse(FAKE.read_text(encoding="utf-8")))
    assert names >= {"ICudaEngine", "set_input_shape", "get_tensor_name", "WORKSPACE"}


@pytest.mark.slow
def test_the_runner_uses_names_that_exist(bindings):
    _, library = bindings
    assert absent(used(ast.parse(RUNNER.read_text(encoding="utf-8"))) - GUARDED, library) == []
    assert absent(["get_tensor_size", "set_flags_of"], library) == ["get_tensor_size", "set_flags_of"]


@pytest.mark.slow
def test_the_fakes_have_no_other_names(bindings):
    _, library = bindings
    assert absent(defined(ast.parse(FAKE.read_text(encoding="utf-8"))), library) == []


@pytest.mark.slow
def test_the_builder_plans_with_names_that_exist(bindings):
    version, library = bindings
    rules, names = versions.rules(version), set()
    for precision in ("fp32", "fp16", "int8"):
        for half in (False, True):
            for dla in (None, 0):
                options = BuildOptions(precision, half_typed=half, sparsity=True, dla_core=dla)
                try:
                    plan = builder.plan(version, options)
                except RecipeError:  # the version lacks an option
                    continue
                names |= {*plan.network_flags, *plan.builder_flags, plan.workspace}
    assert names and absent(names, library) == []
    assert (absent(["builder_optimization_level"], library) == []) == rules.optimization_level
    assert (absent(["STRONGLY_TYPED"], library) == []) == (rules.strongly_typed != "no")
    assert (absent(["FP16"], library) == []) == (rules.strongly_typed != "always")
    assert (absent(["max_workspace_size"], library) == []) == (rules.group in ("8.2", "8.4"))
