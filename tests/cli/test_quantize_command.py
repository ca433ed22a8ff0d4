"""`edgeship quantize` with an accuracy limit: layers in float, messages, exit code; and input errors."""

import json

import onnx
import pytest
import torch
from float_graphs import Graph

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models import export, resnet, weights
from edgeship.toolkit.pipeline import mixed_precision

MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    prepare = Preprocess(16, 16, MEAN, STD)
    with torch.no_grad():
        (batch,) = batches(open_dataset("digits:train"), range(60), prepare, batch=60)
        net.fc.bias -= net(torch.from_numpy(batch.images)).mean(0)  # else all images get the same class
    export.export(net, path, size=16, preprocess=prepare)
    return path


def quantize(network, out, *more):
    fixed = ["--target", "tensorrt", "--images", "8", "--effort", "fast", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        app.main(["quantize", str(network), "digits:train", *fixed, *more])
    return ended.value.code or 0


def layers_in_int8(path):
    """Return the names of the layers with quantized weights."""
    return {n.name for n in onnx.load(path).graph.node if n.op_type == "Conv" and "dequantized" in n.input[1]}


def test_a_limit_that_holds_is_printed(network, tmp_path, capfd):
    assert quantize(network, tmp_path / "q.onnx", "--min-agreement", "0.01") == 0
    assert "note: min_agreement = 0.01: " in (err := capfd.readouterr().err)
    assert "on 1000 images, every layer in INT8" in err


def test_layers_go_to_float_until_it_holds(network, tmp_path, capfd):
    assert quantize(network, tmp_path / "plain.onnx") == 0
    capfd.readouterr()
    assert quantize(network, tmp_path / "q.onnx", "--min-agreement", "1", "--json") == 0
    mixed = json.loads(capfd.readouterr().out)["mixed"]
    names = {layer["name"] for layer in mixed["layers"]}
    assert mixed["int8"] < 1 == mixed["reached"] and mixed["images"] == 1000 and mixed["held_out"]
    assert layers_in_int8(tmp_path / "q.onnx") == layers_in_int8(tmp_path / "plain.onnx") - names


def test_two_limits_are_refused_before_any_work(network, tmp_path, capfd):
    code = quantize(network, tmp_path / "q.onnx", "--min-agreement", "0.9", "--max-validation-drop-pp", "1")
    assert code == 2 and "both set" in capfd.readouterr().err
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_limit_that_nothing_meets_ends_with_code_3_and_the_file(
    more, network, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(mixed_precision, "agreement", lambda *_: 0.5)
    assert quantize(network, tmp_path / "q.onnx", "--min-agreement", "0.9", *more) == 3
    out, err = capfd.readouterr()
    assert "min_agreement = 0.9 is missed: 0.5 on 1000 images" in err
    assert not more or json.loads(out)["mixed"]["met"] is False
    assert (tmp_path / "q.onnx").is_file()


def grey(tmp_path):
    graph = Graph(8, 1, batch=1)
    return graph.head(graph.conv("images", 4), classes=10).save(tmp_path / "grey.onnx")


def test_a_grey_net_takes_one_number(tmp_path, capfd):
    stated = ("--preprocess", "mean=0.5", "--preprocess", "std=0.25")
    assert quantize(grey(tmp_path), tmp_path / "q.onnx", *stated) == 0
    assert (tmp_path / "q.onnx").is_file()


def test_what_inspect_counts_is_what_the_float_graph_has(network, tmp_path, capfd):
    assert quantize(network, tmp_path / "q.onnx") == 0
    capfd.readouterr()
    counted = []
    for path in (network, tmp_path / "q.onnx"):
        with pytest.raises(SystemExit):
            app.main(["inspect", "graph", str(path), "--json"])
        counted.append(json.loads(capfd.readouterr().out))
    assert counted[1]["quantized"] and not counted[0]["quantized"]
    for key in ("macs", "parameters"):
        assert counted[1][key] == counted[0][key] > 1000


def test_other_channels_than_the_graph_takes_are_an_error_before_any_work(tmp_path, capfd):
    assert quantize(grey(tmp_path), tmp_path / "q.onnx") == 2
    err = capfd.readouterr().err
    assert "1 channel, but the preprocessing has 3" in err
    assert "--preprocess mean=0.5 --preprocess std=0.25" in err
    with pytest.raises(SystemExit) as ended:
        app.main(["inspect", "ranges", str(tmp_path / "grey.onnx"), "digits:train"])
    assert ended.value.code == 2


def test_one_of_several_outputs_behind_a_softmax(network, tmp_path, capfd):
    """Check that the limit applies to the logits, and that the written graph has the output of the file."""
    model = onnx.load(network)
    (logits,) = (value.name for value in model.graph.output)
    model.graph.node.append(onnx.helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    value = onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, [1, 10])
    model.graph.output.append(value)
    onnx.save(model, tmp_path / "two.onnx")
    assert quantize(tmp_path / "two.onnx", tmp_path / "q.onnx") == 1
    assert f"{logits}, probabilities" in (err := capfd.readouterr().err) and f"--output {logits}" in err
    chosen = ["--output", "probabilities", "--min-agreement", "0.01"]
    assert quantize(tmp_path / "two.onnx", tmp_path / "q.onnx", *chosen) == 0
    assert "note: fitted" in capfd.readouterr().err
    written = onnx.load(tmp_path / "q.onnx").graph
    assert [value.name for value in written.output] == ["probabilities"]
    assert written.node[-1].op_type == "Softmax"
    assert quantize(network, tmp_path / "plain.onnx") == 0
    assert layers_in_int8(tmp_path / "q.onnx") == layers_in_int8(tmp_path / "plain.onnx")


def test_a_recipe_names_the_output_too(network, tmp_path):
    from edgeship.toolkit.core.errors import ModelError
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.pipeline.load_and_export import ONNX, import_onnx
    from edgeship.toolkit.pipeline.recipe import Recipe

    model = onnx.load(network)
    (logits,) = (value.name for value in model.graph.output)
    model.graph.output.append(onnx.helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "two.onnx")
    settings = {"load": {"model": str(tmp_path / "two.onnx")}, "select": {"source": "digits:train"}}
    settings["evaluate"] = {"source": "digits:test"}
    with pytest.raises(ModelError, match="2 outputs"):
        import_onnx(Recipe.build(settings), tmp_path, tmp_path)
    import_onnx(Recipe.build(settings, [f"load.output={logits}"]), tmp_path, tmp_path)
    assert io.read(tmp_path / ONNX).output == logits


@pytest.mark.parametrize("stated", [False, True])
def test_an_assumed_preprocessing_is_called_so(tmp_path, capfd, stated):
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    export.export(net, tmp_path / "net.onnx", size=16)
    options = ["--preprocess", "mean=0.5,0.5,0.5", "--preprocess", "std=0.5,0.5,0.5"] if stated else []
    assert quantize(tmp_path / "net.onnx", tmp_path / "q.onnx", "--json", *options) == 0
    captured = capfd.readouterr()
    summary = json.loads(captured.out)
    origin = "stated" if stated else "assumed"
    assert summary["preprocess_source"] == origin
    assert summary["preprocess"]["mean"] == ([0.5] * 3 if stated else [0.485, 0.456, 0.406])
    assert ("assumed: ImageNet" in captured.err) == (not stated)
    properties = {each.key: each.value for each in onnx.load(tmp_path / "q.onnx").metadata_props}
    assert properties["preprocess_source"] == origin and "preprocess" in properties
    assert json.loads(properties["labels"]) == list("0123456789")


def test_the_answer_has_accuracy_layers_sizes_and_the_next_command(network, tmp_path, capfd):
    assert quantize(network, tmp_path / "q.onnx") == 0
    lines = capfd.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "of 200 held-out images" in rows["agreement"] and "dB, simulation" in rows["SQNR"]
    assert "20 of 20 layers" in rows["INT8"] and str(tmp_path / "q.onnx") in rows["file"]
    assert "edgeship audit" in rows["next"] and "mean 0.5, 0.5, 0.5" in rows["images"]
    assert quantize(network, tmp_path / "q.onnx", "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    assert f"{100 * figures['agreement']:.2f} %" in rows["agreement"] and figures["images"] == 200
    assert figures["int8_bytes"] == (tmp_path / "q.onnx").stat().st_size
    tensors = figures["activations"].values()
    assert tensors and not any("counts" in tensor for tensor in tensors)
    assert quantize(network, tmp_path / "q.onnx", "--json", "--histograms") == 0
    tensors = json.loads(capfd.readouterr().out)["activations"].values()
    assert all(len(tensor["counts"]) == 64 for tensor in tensors)


def test_a_checkpoint_is_quantized_as_its_onnx_file(network, tmp_path):
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    prepare = Preprocess(16, 16, MEAN, STD)
    checkpoint = weights.save(net, tmp_path / "net", prepare)
    export.export(net, tmp_path / "net.onnx", size=16, preprocess=prepare)
    graphs = []
    for model in (checkpoint, tmp_path / "net.onnx"):
        assert quantize(model, tmp_path / "q.onnx") == 0
        graphs.append((tmp_path / "q.onnx").read_bytes())
    assert graphs[0] == graphs[1]
