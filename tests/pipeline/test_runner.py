"""The runner on two artificial stages: order, caching, failures."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest

from edgeship.toolkit.core import signals
from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import DataError, RecipeError, ToolkitError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline.code_closure import Sources
from edgeship.toolkit.pipeline.publish import command
from edgeship.toolkit.pipeline.recipe import CompileOptions, Recipe, SelectOptions
from edgeship.toolkit.pipeline.runner import run
from edgeship.toolkit.pipeline.stage import Stage
from edgeship.toolkit.pipeline.store import Store
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants
from edgeship.toolkit.runs.index import RunIndex
from edgeship.toolkit.runs.network import ModelInfo

CALLS = []


def load(recipe, inputs, out, work_dir):
    CALLS.append("load")
    (out / "model").write_text(recipe.load.model)
    ModelInfo("net", "", 1, 10, Preprocess(), "stated").write(out)


def select(recipe, inputs, out, work_dir):
    CALLS.append("select")
    write_json(out / "manifest.json", [(inputs["load"] / "model").read_text(), recipe.select.seed // 10])


def calibrate(recipe, inputs, out, work_dir):
    CALLS.append("calibrate")
    (out / "ranges").write_text((inputs["select"] / "manifest.json").read_text())


def report(recipe, inputs, out, work_dir):
    CALLS.append("report")
    write_json(out / "report.json", json.loads((inputs["run"] / "run.json").read_text()))


STAGES = (
    Stage("load", load),
    Stage("select", select, needs=("load",)),
    Stage("calibrate", calibrate, needs=("select",)),
    Stage("report", report, needs=("calibrate",), needs_run_info=True),
)
OWN = ("run.json", "recipe.toml", "report.json", "engines/model.json", "engines/labels.txt")
RECIPE = Recipe.build({"select": {"source": "digits"}})


@pytest.fixture
def start(tmp_path):
    store = Store(tmp_path / "store")

    def start(recipe=RECIPE, stages=STAGES, **options):
        CALLS.clear()
        result = run(recipe, store=store, stages=stages, **options)
        return CALLS[:], result

    return start


def test_a_second_run_does_nothing(start):
    calls, first = start()
    assert calls == ["load", "select", "calibrate", "report"]
    calls, second = start()
    assert calls == []
    assert all(stage.cached for stage in second.stages)
    assert [stage.folder for stage in first.stages] == [stage.folder for stage in second.stages]


def test_only_what_depends_on_an_option_runs_again(start):
    start()
    calls, _ = start(replace(RECIPE, select=SelectOptions(source="digits", seed=10)))
    assert calls == ["select", "calibrate", "report"]


def test_equal_results_stop_the_rerun(start):
    start(stages=STAGES[:3])
    calls, _ = start(replace(RECIPE, select=SelectOptions(source="digits", seed=9)), stages=STAGES[:3])
    assert calls == ["select"]  # its manifest is the same, so nothing after it changes


def test_until_and_redo(start):
    assert start(until="select")[0] == ["load", "select"]
    assert start(until="calibrate", redo=["load"])[0] == ["load", "calibrate"]
    with pytest.raises(RecipeError, match="no stage named 'calibrat'") as caught:
        start(until="calibrat")
    assert caught.value.hint == "did you mean 'calibrate'?"


def test_another_source_of_the_stage_runs_it_again(start, monkeypatch):
    start()
    digest = Sources.digest
    changed = {"select": "changed"}  # of the rest the digest is as it was
    monkeypatch.setattr(Sources, "digest", lambda it, work: changed.get(work.__name__) or digest(it, work))
    assert start()[0] == ["select"]


def test_paths_count_by_content(start, tmp_path):
    def recipe(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return Recipe.build({"load": {"weights": str(path)}, "select": {"source": "digits"}})

    start(recipe("a.pth", b"one"))
    assert start(recipe("b.pth", b"one"), until="calibrate")[0] == []
    assert "load" in start(recipe("b.pth", b"two"))[0]


def test_a_device_stage_belongs_to_the_device_but_not_to_its_clock(start, monkeypatch):
    from edgeship.targets import _device as device

    here = device.this_device()
    stages = (replace(STAGES[0], on_device=lambda recipe: True),)
    start(stages=stages)
    monkeypatch.setattr(device, "this_device", lambda: replace(here, clocks_mhz=1.0))
    assert start(stages=stages)[0] == []
    monkeypatch.setattr(device, "this_device", lambda: replace(here, instruction_sets=("other",)))
    assert start(stages=stages)[0] == ["load"]


def test_what_is_watched(start):
    seen = []
    start(until="select", watch=lambda stage, state, seconds: seen.append((stage, state)))
    start(until="calibrate", watch=lambda stage, state, seconds: seen.append((stage, state)))
    assert seen == [
        ("load", "started"),
        ("load", "done"),
        ("select", "started"),
        ("select", "done"),
        ("load", "cached"),
        ("select", "cached"),
        ("calibrate", "started"),
        ("calibrate", "done"),
    ]


def test_a_missing_option_is_told_before_any_work(start):
    with pytest.raises(RecipeError, match=r"select\.source is not set"):
        start(Recipe())
    assert CALLS == []


def test_a_wrong_path_is_told_before_any_work(start, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"select\.source: no such file or folder: .*imagse\.zip") as caught:
        start(Recipe.build({"select": {"source": str(tmp_path / "imagse.zip")}}))
    assert caught.value.hint == "did you mean 'images.zip'?"
    assert CALLS == []


def failing(failure):
    def select(recipe, inputs, out, work_dir):
        (out / "half").write_text("x")
        raise failure

    return (STAGES[0], Stage("select", select, needs=("load",)))


def test_a_failed_stage_leaves_nothing_and_the_next_run_resumes(start, tmp_path):
    with pytest.raises(DataError, match="corrupt"):
        start(stages=failing(DataError("corrupt", hint="x")))
    assert not list((tmp_path / "store" / "tmp").iterdir())
    calls, _ = start(until="select")
    assert calls == ["select"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("release unlocked lock")])
def test_an_interrupt_names_the_stage(start, monkeypatch, failure):
    monkeypatch.setattr(signals, "_received", [signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt, match="interrupted in stage 'select'"):
        start(stages=failing(failure))


class SafetensorError(Exception):
    """Disk-full errors of libraries become one error."""


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_as_one(start, failure):
    with pytest.raises(ToolkitError, match="no room left to write") as caught:
        start(stages=failing(failure))
    assert "edgeship store gc" in caught.value.hint and "EDGESHIP_STORE" not in str(caught.value)


def test_other_failures_keep_their_traceback(start):
    with pytest.raises(ZeroDivisionError):
        start(stages=failing(ZeroDivisionError("our bug")))


def test_out_gets_the_report_and_where_everything_is(start, tmp_path):
    out = tmp_path / "out"
    _, result = start(out=out)
    content = RunIndex.read(out)
    assert [stage.name for stage in content.stages] == ["load", "select", "calibrate", "report"]
    assert content.stages[1].folder == result.folder("select")
    assert content.recipe["select"]["source"] == "digits"
    inside = json.loads((out / "report.json").read_text())
    assert [stage["name"] for stage in inside["stages"]] == ["load", "select", "calibrate", "report"]
    assert (out / "report.json").stat().st_mode & 0o777 == 0o644


def test_out_is_whole_or_untouched(start, tmp_path, monkeypatch):
    out = tmp_path / "out"
    start(out=out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgeship.toolkit.pipeline.publish.write_json", full)
    for place in (out, tmp_path / "new"):
        with pytest.raises(ToolkitError, match=f"no room left .*{place}"):
            start(replace(RECIPE, select=SelectOptions(source="digits", seed=99)), out=place)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_out_that_is_a_file_is_a_clear_error(start, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ToolkitError, match="cannot write to") as caught:
        start(out=tmp_path / "out")
    assert "--out" in caught.value.hint and (tmp_path / "out").read_text() == "mine"


def test_the_command_that_repeats_a_run():
    recipe = Recipe.read(
        "quickstart", ["select.images=7", "compile.targets=openvino", "load.weights=a b.pth"]
    )
    assert command(recipe) == (
        "edgeship run quickstart --set 'load.weights=a b.pth' --set select.images=7 "
        "--set 'compile.targets=[\"openvino\"]'"
    )
    assert command(Recipe()) is None


ENGINES = ("onnxruntime-fp32", "openvino-int8")


def compile(recipe, inputs, out, work_dir):
    """Records as the stage leaves them, of engines that do nothing."""
    ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for end in "xy"]
    nothing = onnx.helper.make_node("Identity", ["x"], ["y"])
    records = {}
    for name in ENGINES if "openvino" in recipe.compile.targets else ENGINES[:1]:
        (out / name).mkdir()
        graph = onnx.helper.make_graph([nothing], name, ends[:1], ends[1:])
        onnx.save(onnx.helper.make_model(graph), out / name / "graph.onnx")
        records[name] = CompiledVariant("graph.onnx")
    CompiledVariants(records).write(out)


BUILDING = (*STAGES[:3], Stage("compile", compile, needs=("calibrate",)), STAGES[3])


def built(*names, **more):
    return replace(RECIPE, compile=CompileOptions(targets=names), **more)


def files(out):
    return {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}


def test_out_keeps_what_no_run_has_put_there(start, tmp_path):
    """Seen: a note below engines/ that a run removed."""
    out = tmp_path / "mine"
    notes = ("engines/notes.txt", "photo.jpg", "engines/openvino/openvino-int8/notes.txt")
    (out / "engines").mkdir(parents=True)
    for name in notes[:2]:
        (out / name).write_text("precious")
    start(built("openvino", "onnxruntime"), BUILDING, out=out)
    ours = {*OWN, *(f"engines/{n.split('-')[0]}/{n}/graph.onnx" for n in ENGINES)}
    assert set(RunIndex.read(out).files) == ours and files(out) == {*ours, *notes[:2]}
    (out / notes[2]).write_text("precious")
    start(built("onnxruntime"), BUILDING, out=out)
    ours.remove("engines/openvino/openvino-int8/graph.onnx")
    assert set(RunIndex.read(out).files) == ours and files(out) == {*ours, *notes}
    assert all((out / name).read_text() == "precious" for name in notes)


def test_stale_engines_leave_no_empty_folder(start, tmp_path):
    start(built("openvino"), BUILDING, out=tmp_path / "out")
    start(built("onnxruntime"), BUILDING, out=tmp_path / "out")
    assert {folder.name for folder in (tmp_path / "out" / "engines").iterdir() if folder.is_dir()} == {
        "onnxruntime"
    }


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "report.md",
        "report.html",
        "report.json",
        "engines",
        "engines/openvino/openvino-int8/graph.onnx",
    ],
)
def test_out_with_a_file_that_would_be_overwritten_is_refused_before_any_work(start, tmp_path, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    with pytest.raises(RecipeError, match="would be overwritten") as caught:
        start(built("openvino"), BUILDING, out=tmp_path / "mine")
    assert "--out" in caught.value.hint and caught.value.exit_code == 2 and CALLS == []
    assert mine.read_text() == '{"mine": 1}'
    if name.startswith("report"):  # a run that writes no report does not mind it
        start(built("openvino"), BUILDING, out=tmp_path / "mine", until="compile")
        with pytest.raises(RecipeError, match="would be overwritten"):
            start(built("openvino"), BUILDING, out=tmp_path / "mine")
        assert mine.read_text() == '{"mine": 1}'


def test_a_file_in_the_way_of_a_new_engine_stays(start, tmp_path):
    out = tmp_path / "out"
    start(built("onnxruntime"), BUILDING, out=out)
    mine = out / "engines/openvino/openvino-int8/graph.onnx"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    before = files(out)
    with pytest.raises(RecipeError, match="would be overwritten"):
        start(built("openvino"), BUILDING, out=out)
    assert mine.read_text() == "mine" and files(out) == before


def test_a_run_json_from_elsewhere_cannot_name_files_outside(start, tmp_path):
    out = tmp_path / "out"
    start(built("onnxruntime"), BUILDING, out=out)
    (tmp_path / "mine").write_text("mine")
    content = RunIndex.read(out)
    replace(content, files=(*content.files, "engines/../../mine", str(tmp_path / "mine"))).write(out)
    start(built("openvino"), BUILDING, out=out)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("change", ["stays", "undone", "new file", "replaced"])
def test_images_that_change_while_a_stage_reads_them_give_no_result(start, tmp_path, change):
    """A result of changed files would be stored under the key of the unchanged ones."""
    images = tmp_path / "images"
    images.mkdir()
    file = images / "a.png"
    file.write_bytes(b"before")

    def disturbed(recipe, inputs, out, work_dir):
        (out / "manifest.json").write_bytes(file.read_bytes())
        if change == "new file":
            (images / "b.png").write_bytes(b"x")
        elif change == "replaced":
            other = tmp_path / "other"
            other.write_bytes(b"before")
            other.replace(file)
        else:
            file.write_bytes(b"after!")
        if change == "undone":
            file.write_bytes(b"before")

    stages = (STAGES[0], Stage("select", disturbed, needs=("load",)))
    recipe = replace(RECIPE, select=SelectOptions(source=str(images)))
    with pytest.raises(DataError, match=r"source: .*images changed while it was read") as caught:
        start(recipe, stages=stages)
    assert "run again" in caught.value.hint
    calls, _ = start(recipe, stages=STAGES[:2])
    assert calls == ["select"]  # nothing was stored for it


def test_what_a_killed_run_left_in_its_folder_is_removed(start, tmp_path):
    """Seen: a run that was killed while it published left its temporary folder there for good."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    dead, live = (out / f".incoming-{pid}-x" for pid in (ended.pid, os.getpid()))
    for folder in (dead, live):
        (folder / "engines").mkdir(parents=True)
    (out / f".incoming-{ended.pid}-y").symlink_to(elsewhere)
    (out / ".incoming-mine").mkdir()
    start(out=out)
    assert not dead.exists() and live.is_dir() and elsewhere.is_dir() and (out / ".incoming-mine").is_dir()
