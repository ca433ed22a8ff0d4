"""Graphs for the TensorRT of a device: opsets are converted, errors refused, by every command alike."""

import json

import onnx
import pytest
from bad_graphs import scale_zero
from click.testing import CliRunner
from float_graphs import Graph
from qdq_graphs import OPENVINO, TENSORRT, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import TARGET, jetson, jetson_folder, repair, rtx_check, versions
from edgeship.toolkit.cli.app import app
from edgeship.toolkit.core.errors import DeviceError, ModelError, RecipeError, TargetError
from edgeship.toolkit.pipeline.recipe import Recipe


def opset(path):
    return onnx.load(path).opset_import[0].version


@pytest.mark.parametrize(
    ("source", "version", "result", "chosen"),
    [
        (17, None, 17, jetson.PORTABLE),
        (18, None, 17, jetson.PORTABLE),
        (20, "8.2", 13, "8.2"),
        (20, "8.5", 17, "8.5"),
        (20, "10.3", 20, "10.3"),
        (22, "10.3", 17, "10.3"),
        (22, "10.13", 22, "10.13"),
    ],
)
def test_the_opset_is_one_that_the_version_reads(source, version, result, chosen, tmp_path):
    path = save(residual_net(TENSORRT, opset=source), tmp_path / "net.onnx")
    fitted = repair.fit(path, version, tmp_path / "fit.onnx")
    assert (opset(tmp_path / "fit.onnx"), fitted.version) == (result, chosen)
    assert bool(fitted.note) == (source != result)
    assert not fitted.note or {str(source), str(result)} <= set(fitted.note.split())
    with onnxruntime.simulate(path) as one, onnxruntime.simulate(tmp_path / "fit.onnx") as two:
        assert (one.infer(images()) == two.infer(images())).all()


def only_in_18(path):
    g = Graph(8)
    x = g.node("Resize", [g.conv("images", 4), "", g.constant("by", [1, 1, 2, 2])], (4, 16, 16))
    g.nodes[-1].attribute.append(
        onnx.helper.make_attribute("coordinate_transformation_mode", "half_pixel_symmetric")
    )
    model = g.head(x).model(opset=19)
    return save(model, path)


def test_a_graph_without_an_older_form_gets_the_oldest_release_that_reads_it(tmp_path):
    path = only_in_18(tmp_path / "net.onnx")
    fitted = repair.fit(path, None, tmp_path / "fit.onnx")
    assert versions.rules(fitted.version).version == (10, 0)
    assert opset(tmp_path / "fit.onnx") == 19 and "10.0" in fitted.note
    with pytest.raises(ModelError, match="opset 19 cannot be lowered to 17") as caught:
        repair.fit(path, "8.5", tmp_path / "no.onnx")
    assert "--trt" in caught.value.hint and not (tmp_path / "no.onnx").exists()


def test_compiling_converts_and_reports_it(tmp_path, monkeypatch):
    def absent():
        raise TargetError("not installed", hint="pip install it")

    monkeypatch.setattr(rtx_check, "sdk", absent)
    path = save(residual_net(TENSORRT, opset=20), tmp_path / "net.onnx")
    built = TARGET.compile(path, tmp_path / "old", "int8")
    assert opset(tmp_path / "old" / built.file) == 17
    assert any("from opset 20 to 17" in warning for warning in built.warnings)
    built = TARGET.compile(path, tmp_path / "new", "int8", version="10.3")
    assert opset(tmp_path / "new" / built.file) == 20
    assert not any("opset" in warning for warning in built.warnings)


def test_an_export_for_a_jetson_converts(tmp_path):
    path = save(residual_net(TENSORRT, opset=20), tmp_path / "net.onnx")
    done = jetson_folder.write(path, tmp_path / "out", version="8.5.2", module="AGX Orin")
    assert opset(tmp_path / "out" / "model-int8.onnx") == 17
    assert any("from opset 20 to 17" in warning for warning in done.warnings)
    bad = save(residual_net(TENSORRT), tmp_path / "bad.onnx", scale_zero)
    with pytest.raises(TargetError, match="scale-not-positive"):
        jetson_folder.write(bad, tmp_path / "none", version="8.5.2", module="AGX Orin")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ({}, None),
        ({"compile.jetpack": "6.2"}, "10.3.0"),
        ({"compile.jetpack": "R36.4.3"}, "10.3.0"),
        ({"compile.tensorrt": "10.3.0.30-1+cuda12.5"}, "10.3.0.30"),
        ({"compile.tensorrt": "10.10"}, "10.10"),
        ({"compile.jetpack": "5.1.2", "compile.tensorrt": "8.5"}, "8.5.2"),
    ],
)
def test_the_recipe_states_the_device(options, version):
    for overrides in (options, [f"{name}={value}" for name, value in options.items()]):
        compiling = Recipe.build({}, overrides).compile
        assert compiling.device_version() == version
        assert compiling.device_version("openvino") is None


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"compile.jetpack": "9.9"}, DeviceError, "7.2"),
        ({"compile.tensorrt": "7.1"}, RecipeError, "8.5"),
        ({"compile.tensorrt": 10.10}, RecipeError, "in quotes"),
        ({"compile.jetpack": "6.2", "compile.tensorrt": "8.5"}, DeviceError, "10.3.0"),
    ],
)
def test_devices_that_do_not_exist_are_refused_by_the_recipe(options, error, hint):
    with pytest.raises(error) as caught:
        Recipe.build({}, options)
    assert hint in caught.value.hint


@pytest.mark.parametrize("command", ["run", "quantize", "audit", "export-jetson", "bundle"])
def test_every_command_of_the_path_has_the_same_two_options(command):
    parameters = {each.name: each for each in app.get_command(None, command).params}
    assert parameters["compile_jetpack"].opts[0] == "--jetpack"
    assert parameters["compile_tensorrt"].opts[0] == "--trt"


def test_an_audit_by_jetpack_is_one_by_its_tensorrt(tmp_path):
    path = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    results = [
        CliRunner().invoke(app, ["audit", str(path), "--json", *more]).stdout
        for more in (["--jetpack", "6.2"], ["--trt", "10.3.0"], [])
    ]
    assert results[0] == results[1]
    assert json.loads(results[0])["tensorrt"] == "10.3.0"
    assert json.loads(results[2])["tensorrt"] == jetson.PORTABLE
