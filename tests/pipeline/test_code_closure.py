"""The import closure of the stages: each file below a stage is in its key, and no other."""

import functools
import inspect
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import edgeship
from edgeship.toolkit.pipeline import Store, run
from edgeship.toolkit.pipeline.code_closure import Sources, installed
from edgeship.toolkit.pipeline.recipe import LoadOptions, Recipe
from edgeship.toolkit.pipeline.stages import STAGES

ROOT = Path(edgeship.__file__).parent
RECIPE = Recipe.build({"load": {"weights": "net.pth"}, "select": {"source": "digits"}})
LOADS = {
    "onnx": replace(RECIPE, load=LoadOptions(model="net.onnx")),
    "train": replace(RECIPE, load=LoadOptions(weights="train")),
    "checkpoint": RECIPE,
}
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "edgeship"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))  # what is linked is copied
    return root


def sources(root):
    return Sources({"edgeship": root})


def function(name, how="checkpoint"):
    stage = BY_NAME[name]
    return stage.implementation(LOADS[how]) if stage.implementation else stage.work


KEYED = [*(("load", how) for how in LOADS), *((name, "") for name in BY_NAME if name != "load")]


def keys(root):
    found = sources(root)
    return {(name, how): found.digest(function(name, how)) for name, how in KEYED}


def test_each_reachable_file_changes_the_keys_of_the_stages_that_reach_it_and_no_others(tree):
    found = sources(tree)
    reached = {keyed: set(found.files(function(*keyed)).values()) for keyed in KEYED}
    before = {keyed: found.digest(function(*keyed)) for keyed in KEYED}
    files = sorted(set().union(*reached.values()))
    assert len(files) > 100
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"\n# changed\n")
        found._digests.pop(file)
        changed = {keyed for keyed in KEYED if found.digest(function(*keyed)) != before[keyed]}
        assert changed == {keyed for keyed in KEYED if file in reached[keyed]}, file
        file.write_bytes(content)
        found._digests.pop(file)


@pytest.mark.parametrize(
    ("file", "yes", "no"),
    [
        (
            "toolkit/graph/fold.py",
            {"load-onnx", "export", "calibrate", "quantize"},
            {"load-train", "finetune"},
        ),
        ("toolkit/core/statistics.py", {"evaluate", "quantize", "report"}, {"load-train", "finetune"}),
        ("toolkit/models/trainer.py", {"load-train", "finetune"}, {"load-onnx", "calibrate", "quantize"}),
        ("quantization/observers/mse.py", {"quantize"}, {"load-train", "finetune", "calibrate"}),
        ("toolkit/prune/importances/obs.py", {"prune"}, {"load-train", "finetune"}),
        ("targets/tensorrt/lint.py", {"compile", "quantize"}, {"load-train", "finetune", "calibrate"}),
        ("toolkit/report/templates/report.md.j2", {"report"}, {"load-train", "prune", "compile", "bench"}),
        ("targets/_timing.py", {"bench", "quantize", "prune"}, {"load-train", "finetune", "calibrate"}),
    ],
)
def test_what_a_change_of_a_file_runs_again(tree, file, yes, no):
    """Seen: with a fold that multiplies weights by 3, `load` stayed cached."""
    before, content = keys(tree), (tree / file).read_bytes()
    (tree / file).write_bytes(content.replace(b"\n", b"\n\n", 1))
    after = keys(tree)
    (tree / file).write_bytes(content)
    changed = {"-".join(filter(None, keyed)) for keyed in KEYED if before[keyed] != after[keyed]}
    assert yes <= changed and not no & changed


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("quantization/observers/mine.py", {"quantize"}),
        ("toolkit/prune/importances/mine.py", {"prune"}),
        ("targets/mine.py", {"quantize", "compile", "evaluate", "bench"}),
        ("targets/mine/__init__.py", {"quantize", "compile", "evaluate", "bench"}),
        ("toolkit/report/templates/mine.j2", {"report"}),
    ],
)
def test_a_new_plug_in_or_template_counts(tree, file, stages):
    before = keys(tree)
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text("")
    after = keys(tree)
    (tree / file).unlink()
    changed = {name for name, how in KEYED if before[name, how] != after[name, how]}
    assert stages <= changed and not {"load", "finetune", "export"} & changed


def test_the_stages_module_counts_by_function(tree):
    file = tree / "toolkit/pipeline/stages.py"
    before, content = keys(tree), file.read_text()
    file.write_text(content.replace("os.link(folder / name, out / name)", "pass"))
    after = keys(tree)
    file.write_text(content)
    assert {name for name, how in KEYED if before[name, how] != after[name, how]} == {"prune", "finetune"}


@pytest.fixture
def product(tmp_path):
    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    for name in ("a", "b", "c", "d", "e", "pkg/deep", "pkg/other", "plug/one", "plug/_hidden"):
        write(f"own/{name}.py", "")
    write("own/__init__.py", "from own.c import everything\n")
    write("own/pkg/__init__.py", "from own.pkg.other import thing\n")
    write("own/plug/__init__.py", "")
    return write, Sources({"own": tmp_path / "own"})


def reached(found, write, text):
    write("own/start.py", text)

    def work():
        pass

    work.__module__, work.__qualname__ = "own.start", "work"
    return set(found.files(work))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import own.a\nfrom own import b\ndef work(): own\n", {"own.a"}),
        ("from own import a, b\ndef work(): return a.x\n", {"own.a"}),
        ("from own import a, b\ndef helper(): b\ndef work(): return helper()\n", {"own.b"}),
        ("from own import a, b\nLIMIT = a.x\ndef work(): return LIMIT\n", {"own.a"}),
        ("from own import a\ndef work(x: a.T) -> a.T:\n    y: a.T = x\n", set()),
        ("def work():\n    try:\n        from own import a\n    finally: pass\n", {"own.a"}),
        ("from .pkg import deep\ndef work(): deep\n", {"own.pkg", "own.pkg.deep"}),
        ("from own import pkg\ndef work(): pkg\n", {"own.pkg", "own.pkg.other"}),
        ("from own.pkg import thing\ndef work(): thing\n", {"own.pkg", "own.pkg.other"}),
        ("import json\nfrom numpy import array\ndef work(): json, array\n", None),
        ("def work(): plugins.get('own.plug', name)\n", {"own.plug", "own.plug.one"}),
        ("import own.a as short\ndef work(): short\n", {"own.a"}),
        ("from own import a\nclass K:\n    x = a\ndef work(k=K): pass\n", {"own.a"}),
        ("from own import a\ndef work(): return lambda: a\n", {"own.a"}),
    ],
)
def test_what_a_function_reaches(product, text, expected):
    write, found = product
    own = set() if expected is None else {*expected, *({"own"} if expected else ())}
    assert reached(found, write, text) - {"own.plug"} == own - {"own.plug"}


def test_below_the_function_all_imports_of_a_module_count_but_those_for_type_checkers(product):
    write, found = product
    write(
        "own/a.py",
        "import typing\nfrom own import b\nif typing.TYPE_CHECKING:\n    from own import c\n"
        "else:\n    from own import e\ndef unused():\n    if x:\n        import own.d\n",
    )
    text = "from own import a\ndef work(): return a\n"
    assert reached(found, write, text) == {"own", "own.a", "own.b", "own.d", "own.e"}


def test_a_package_that_reads_its_own_files_counts_with_all_of_them(product):
    write, found = product
    write("own/pkg/__init__.py", "from pathlib import Path\nFOLDER = Path(__file__).parent\n")
    write("own/pkg/data/table.bin", "x")
    text = "from own import pkg\ndef work(): return pkg\n"
    assert {"own.pkg/data/table.bin", "own.pkg/deep.py"} <= reached(found, write, text)


def test_a_stage_from_elsewhere_counts_by_its_own_text_and_the_product_below_it(product, tmp_path):
    write, _ = product

    def digest(text):
        write("mine.py", text)
        scope = {"__name__": "mine"}
        exec(compile(text, str(tmp_path / "mine.py"), "exec"), scope)
        return Sources({"own": tmp_path / "own"}).digest(scope["work"])

    first = digest("def work(): return 1\ndef unused(): return 1\n")
    assert digest("def work(): return 1\ndef unused(): return 2\n") == first
    assert digest("def work(): return 2\ndef unused(): return 1\n") != first
    nested = "def outer():\n    def work(): pass\n    return work\nwork = outer()\n"
    assert digest(nested) != digest(nested + "other = 1\n")  # all of the module counts
    using = "def work():\n    from own import a\n    return a\n"
    before = digest(using)
    write("own/a.py", "x = 1\n")
    assert digest(using) != before


def test_the_installed_sources_are_those_that_run_and_are_read_quickly():
    assert (
        installed().files(function("load"))["edgeship.toolkit.core.artifact"]
        == ROOT / "toolkit/core/artifact.py"
    )
    started = time.process_time()
    fresh = sources(ROOT)
    for keyed in KEYED:
        fresh.digest(function(*keyed))
    assert time.process_time() - started < 3.0  # 0.3 s where nothing else runs


def traced(stage, called):
    """The stage, noting the product's files whose functions are called while it works."""

    @functools.wraps(stage.work)
    def work(recipe, inputs, out, work_dir):
        files = called.setdefault(stage.name, set())

        def note(frame, event, _argument):
            if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function's, no class's
                files.add(frame.f_code.co_filename)

        threading.setprofile(note)
        sys.setprofile(note)
        try:
            stage.work(recipe, inputs, out, work_dir)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    return replace(stage, work=work)


@pytest.mark.slow
def test_nothing_runs_in_a_stage_that_is_not_in_its_key(tmp_path):
    """Syntax trees against calls: a run from training on."""
    recipe = Recipe.build(
        {
            "load": {
                "model": "resnet20",
                "weights": "train",
                "train": {"source": "digits:test", "epochs": 1, "batch": 128},
            },
            "prune": {"method": "obs", "keep_ratio": 0.5, "images": 20, "flip_augment": False},
            "finetune": {"epochs": 1, "images": 40},
            "export": {"size": 8},
            "select": {"source": "digits:train", "images": 8},
            "quantize": {"min_agreement": 0.01, "validation_images": 8, "sensitivity": True},
            "compile": {"targets": ["openvino", "onnxruntime", "tensorrt"]},
            "guard": {"max_flips": 0.1, "images": 20},
            "evaluate": {"source": "digits:test", "images": 20},
            "bench": {"runs": 2, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )
    called = {}
    run(recipe, store=Store(tmp_path / "store"), stages=[traced(stage, called) for stage in STAGES])
    assert list(called) == list(BY_NAME)
    for name, files in called.items():
        ours = {Path(file) for file in files if Path(file).is_relative_to(ROOT)}
        start = {Path(function(name, "train").__code__.co_filename), ROOT / "toolkit/pipeline/stages.py"}
        unhashed = {*start, Path(__file__), ROOT / "toolkit/pipeline/recipe.py"}  # by function; by its values
        unkeyed = ours - unhashed - set(installed().files(function(name, "train")).values())
        assert len(ours) > 3 and not unkeyed, name
