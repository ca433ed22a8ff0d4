"""Proof of applications: each fault is named, a right one is proved, also on another runtime."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prove.applications import FAULTS, Application

import edgeship
from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.prove import diagnosis, outputs
from edgeship.toolkit.prove import golden as making
from edgeship.toolkit.prove.faults import CATALOGUE
from edgeship.toolkit.prove.outputs import Answers
from edgeship.toolkit.prove.pipeline import Pipeline

SIDE, MARGIN = 32, 36
SHORT = [
    fault
    for fault in CATALOGUE
    if fault.name in ("bgr", "exif", "no-antialias", "std-missing", "class-order")
]


@pytest.fixture(scope="module")
def pipeline(published, golden):
    shown = making.read(golden)
    with Classifier(published / "engines/onnxruntime/onnxruntime-int8") as classifier:
        yield Pipeline(classifier, [*shown.values()], [*shown])


def answers(pipeline, golden, fault="", kind="logits", graph=None):
    application = Application(graph, SIDE, MARGIN, fault)
    paths = [golden / name for name in making.read(golden)]
    if kind == "tensors":
        return Answers(
            kind, np.stack([application.tensor(path).astype(np.float32).ravel() for path in paths])
        )
    logits = np.stack([application(path) for path in paths])
    return Answers(
        kind, {"logits": logits, "probabilities": outputs.softmax(logits)}.get(kind, logits.argmax(1))
    )


@pytest.mark.parametrize("kind", ["logits", "probabilities", "tensors"])
def test_a_right_application_is_proved(pipeline, golden, graph, kind):
    decided = diagnosis.diagnose(pipeline, answers(pipeline, golden, kind=kind, graph=graph))
    assert decided.verdict == "proved"
    assert decided.faults == ()
    assert decided.residual < 1e-3
    if kind != "tensors":
        assert decided.agreement == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_independent_application_is_named(pipeline, golden, graph, fault):
    decided = diagnosis.diagnose(pipeline, answers(pipeline, golden, fault, graph=graph))
    assert decided.verdict == "fault"
    assert [each.name for each in decided.faults[0]] == [fault]
    assert decided.left < 0.5 * decided.residual


@pytest.mark.parametrize("fault", ["bgr", "layout", "no-antialias", "mean-std-bgr", "half-input"])
def test_tensors_name_the_fault(pipeline, golden, graph, fault):
    decided = diagnosis.diagnose(pipeline, answers(pipeline, golden, fault, "tensors", graph))
    assert [each.name for each in decided.faults[0]] == [fault]


def test_softmax_scale_and_their_kind(pipeline, golden, graph):
    logits = answers(pipeline, golden, graph=graph).values
    cases = {
        "softmax-twice": Answers("probabilities", outputs.softmax(outputs.softmax(logits))),
        "softmax-missing": Answers("probabilities", logits),
        "scale": Answers("logits", logits * 41.5),
    }
    for name, given in cases.items():
        decided = diagnosis.diagnose(pipeline, given)
        assert [each.name for each in decided.faults[0]] == [name]
    assert (
        diagnosis.diagnose(pipeline, Answers("logits", outputs.softmax(logits))).faults[0][0].name
        == "softmax-twice"
    )
    shifted = Answers("logits", logits + np.arange(len(logits))[:, None])  # softmax is the same
    assert diagnosis.diagnose(pipeline, shifted).verdict == "proved"


@pytest.mark.parametrize("pair", [("bgr", "no-antialias"), ("bgr", "class-order")])
def test_two_faults_together_are_named(pipeline, pair):
    faults = [next(each for each in CATALOGUE if each.name == name) for name in pair]
    given = pipeline.outputs(tuple(fault for fault in faults if fault.step != "outputs"))
    given = given[:, ::-1] if "class-order" in pair else given
    decided = diagnosis.diagnose(pipeline, Answers("logits", given), SHORT)
    assert decided.verdict == "fault"
    assert sorted(each.name for each in decided.faults[0]) == sorted(pair)


def test_another_difference_is_called_unexplained(pipeline):
    noise = np.random.default_rng(0).normal(size=pipeline.outputs(()).shape).astype(np.float32)
    decided = diagnosis.diagnose(pipeline, Answers("logits", noise * 30), SHORT)
    assert decided.verdict == "unexplained"
    assert decided.faults == ()


def test_right_applications_with_noise_are_never_accused(pipeline):
    right = pipeline.outputs(())
    moved = np.linalg.norm(pipeline.outputs_of(pipeline.jittered()) - right) / np.sqrt(right.size)
    rng = np.random.default_rng(1)
    for draw in range(60):
        noise = rng.normal(size=right.shape).astype(np.float32) * moved * rng.uniform(0, 1.5)
        given = right + noise
        for kind, values in (
            ("logits", given),
            ("probabilities", outputs.softmax(given)),
            ("classes", given.argmax(1)),
        ):
            decided = diagnosis.diagnose(pipeline, Answers(kind, values))
            assert decided.verdict == "proved" or (kind == "classes" and decided.verdict == "undecided"), draw


def test_classes_name_a_gross_fault_and_say_how_many_images_a_small_one_needs(pipeline, golden, graph):
    right = diagnosis.diagnose(pipeline, answers(pipeline, golden, kind="classes", graph=graph))
    assert right.verdict == "proved"
    hidden = {fault.name: images for fault, images in right.hidden}
    assert hidden  # three classes and 20 images exclude few
    assert all(images is None or images > 1 for images in hidden.values())
    order = Answers("classes", 2 - pipeline.outputs(()).argmax(1))
    assert [fault.name for fault in diagnosis.diagnose(pipeline, order).faults[0]] == ["class-order"]


def test_few_classes_and_constant_outputs_prove_nothing(pipeline):
    right = pipeline.outputs(())
    one = diagnosis.diagnose(pipeline.part(slice(0, 1)), Answers("classes", right[:1].argmax(1)))
    assert one.verdict == "undecided"
    with pytest.raises(DataError, match="logits of all 20 images are equal"):
        diagnosis.diagnose(pipeline, Answers("logits", np.zeros_like(right)))


def test_the_command_line_proves_names_and_counts_the_cost(published, golden, graph, tmp_path, capsys):
    def lines(fault, kind="logits"):
        application = Application(graph, SIDE, MARGIN, fault)
        rows = []
        for path in sorted(golden.glob("[0-9]*")):
            logits = application(path)
            value = {"class": int(logits.argmax())} if kind == "class" else {"logits": logits.tolist()}
            rows.append({"image": f"C:\\app\\{path.name}", **value})
        file = tmp_path / f"{fault}{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    arguments = ["prove", str(published), "--images", str(golden), "--json", "--outputs"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, lines("")])
    assert left.value.code == 0
    proof = json.loads(capsys.readouterr().out)
    assert (proof["verdict"], proof["cost"], proof["images"]) == ("proved", None, 20)
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, lines("bgr")])
    assert left.value.code == 3
    proof = json.loads(capsys.readouterr().out)
    assert proof["faults"][0]["names"] == ["bgr"]
    assert "BGR2RGB" in proof["faults"][0]["lines"][0]
    cost = proof["cost"]
    assert cost["images"] == 48
    right, wrong = (Application(graph, SIDE, MARGIN, fault) for fault in ("", "bgr"))
    paths = sorted((published.parent / "test").rglob("*.jpg"))
    hits = [
        [one(path).argmax() == ["kiwi", "lime", "plum"].index(path.parent.name) for path in paths]
        for one in (right, wrong)
    ]
    assert cost["top1"] == pytest.approx(np.mean(hits[0]), abs=1.1 / 48)
    assert cost["top1_fault"] == pytest.approx(np.mean(hits[1]), abs=1.1 / 48)
    low, high = cost["drop_ci95_pp"]
    assert low <= cost["drop_pp"] <= high
    with pytest.raises(SystemExit):
        app.main(
            [
                "prove",
                str(published),
                "--images",
                str(golden),
                "--cost-images",
                "0",
                "--outputs",
                lines("squash"),
            ]
        )
    text = capsys.readouterr().out
    assert "FAULT" in text
    assert "change:" in text
    assert "not measured" in text


def test_functions_commands_and_tensors_are_applications(published, golden, graph, tmp_path):
    application = Application(graph, SIDE, MARGIN, "bgr")
    proof = edgeship.prove(published, application, images=golden, cost_images=0)
    assert (proof.verdict, proof.faults[0].names) == ("fault", ("bgr",))
    assert edgeship.prove(
        published, lambda path: int(Application(graph, SIDE, MARGIN)(path).argmax()), count=8
    ).proved
    program = tmp_path / "my app.py"
    code = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from prove.applications import Application
application = Application({str(graph)!r}, {SIDE}, {MARGIN})
print("loading", file=sys.stderr)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print("noise")
    print('{{"image": "%s", "logits": %s}}' % (path.name, application(path).tolist()))
"""
    program.write_text(code)
    command = f"{sys.executable} {shlex.quote(str(program))} {{folder}}"
    assert edgeship.prove(published, command=command, count=8).proved
    for path in golden.glob("[0-9]*"):
        np.save(tmp_path / f"{path.stem}.npy", application.tensor(path))
    proof = edgeship.prove(published, tensors=tmp_path, images=golden, cost_images=0)
    assert (proof.kind, proof.faults[0].names) == ("tensors", ("bgr",))


def test_golden_images_have_forms_on_which_faults_show(pipeline, golden, published):
    visible = {fault.name for fault in pipeline.usable(CATALOGUE)
               if not np.array_equal(pipeline.inputs((fault,)), pipeline.inputs(()))}  # fmt: skip
    assert visible == {fault.name for fault in pipeline.usable(CATALOGUE)}
    example = json.loads((golden / making.EXAMPLE).read_text())
    assert len(example["logits"]) == 3
    edgeship.golden_images(published, golden, count=20)  # a second time: the same files
    (golden.parent / "other").mkdir()
    (golden.parent / "other" / "notes.txt").touch()
    with pytest.raises(DataError, match="other files"):
        edgeship.golden_images(published, golden.parent / "other")


@pytest.mark.parametrize("form", ["pixels", "nhwc", "nchw"])
def test_engines_of_every_input_form(golden, form):
    weights = np.random.default_rng(0).normal(size=(32 * 32 * 3, 5)).astype(np.float32)

    class Engine:
        path, labels, input_form = "linear", [*"abcde"], form
        description = SimpleNamespace(
            resize=36, crop=(32, 32), interpolation="bilinear", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]
        )

        def classify_inputs(self, inputs):
            assert inputs.dtype == (np.uint8 if form == "pixels" else np.float32)
            assert inputs.shape[1:] == ((3, 32, 32) if form == "nchw" else (32, 32, 3))
            return [SimpleNamespace(logits=row.reshape(-1).astype(np.float32) @ weights) for row in inputs]

    shown = making.read(golden)
    pipeline = Pipeline(Engine(), [*shown.values()], [*shown])
    names = {fault.name for fault in pipeline.usable(CATALOGUE)}
    assert ("mean-missing" in names) == (form != "pixels")
    for name in ("bgr", "layout", "transposed", "squash"):
        fault = next(each for each in CATALOGUE if each.name == name)
        decided = diagnosis.diagnose(pipeline, Answers("logits", pipeline.outputs((fault,))))
        assert [each.name for each in decided.faults[0]] == [name]
    assert diagnosis.diagnose(pipeline, Answers("logits", pipeline.outputs(()))).verdict == "proved"


SHARED = Path(__file__).parents[3] / "shared"


def cifar(tmp_path):
    from edgeship.toolkit.pipeline import Recipe, Store, run

    data = {name: SHARED / "data" / f"cifar10-jpeg-{name}.zip" for name in ("train", "test")}
    checkpoint = SHARED / "checkpoints" / "resnet18-cifar10-64px.pth"
    if not checkpoint.exists() or not data["test"].exists():
        pytest.skip("needs ../shared with CIFAR-10 and its ResNet-18")
    recipe = Recipe.build(
        {
            "load": {"model": "resnet18", "weights": str(checkpoint)},
            "export": {"size": 64},
            "select": {"source": str(data["train"]), "images": 100},
            "quantize": {"effort": "fast"},
            "compile": {"targets": ["openvino", "onnxruntime"]},
            "evaluate": {"source": str(data["test"]), "images": 400},
            "bench": {"runs": 3, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )
    run(recipe, store=Store(tmp_path / "store"), out=tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_fault_is_named_on_cifar_and_a_thousand_clean_draws_are_proved(tmp_path):
    out = cifar(tmp_path)
    edgeship.golden_images(out, tmp_path / "golden")
    shown = making.read(tmp_path / "golden")
    assert len(shown) == 100
    with Classifier(out / "engines/openvino/openvino-int8", threads=1) as classifier:
        pipeline = Pipeline(classifier, [*shown.values()], [*shown])
        right = pipeline.outputs(())
        for fault in pipeline.usable(CATALOGUE):
            raw = pipeline.outputs((fault,))
            for kind, values in (("logits", raw), ("probabilities", outputs.softmax(raw))):
                decided = diagnosis.diagnose(pipeline, Answers(kind, values))
                assert (decided.verdict, decided.faults[0][0].name) == ("fault", fault.name), kind
                assert {each[0].name for each in decided.faults} == {fault.name}
        moved = float(np.linalg.norm(pipeline.outputs_of(pipeline.jittered()) - right)) / right.size**0.5
        rng = np.random.default_rng(2)
        for draw in range(1000):
            given = right + rng.normal(size=right.shape).astype(np.float32) * moved * rng.uniform(0, 2)
            kind = ("logits", "probabilities", "classes")[draw % 3]
            values = {"logits": given, "probabilities": outputs.softmax(given)}.get(kind, given.argmax(1))
            assert diagnosis.diagnose(pipeline, Answers(kind, values)).verdict == "proved", draw
