"""`edgeship bench`: unique labels, common input shapes, and errors."""

import json

import onnx
import pytest
from float_graphs import Graph

from edgeship.toolkit.cli import app
from edgeship.toolkit.core.threads import granted_cores

QUICK = ("--target", "onnxruntime", "--runs", "2")


@pytest.fixture
def bench(capsys):
    def bench(*arguments, target=QUICK):
        with pytest.raises(SystemExit) as left:
            app.main(["bench", *(str(each) for each in (*arguments, *target))])
        return left.value.code or 0, *capsys.readouterr()

    return bench


def net(path, size=8, channels=3, batch=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = Graph(size, channels, batch)
    return graph.head(graph.conv("images", 4)).save(path)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_grey_net_is_timed_on_grey_images(bench, tmp_path, target):
    code, out, err = bench(net(tmp_path / "g.onnx", channels=1), target=("--target", target, "--runs", "2"))
    assert (code, err) == (0, "") and target in out


def test_files_of_one_name_are_labelled_by_their_folders(bench, tmp_path):
    paths = [net(tmp_path / name) for name in ("a/x/q.onnx", "b/x/q.onnx", "b/other.onnx")]
    code, out, _ = bench(*paths, "--json")
    assert code == 0
    assert list(json.loads(out)["variants"]) == [
        "a/x/q.onnx:onnxruntime",
        "b/x/q.onnx:onnxruntime",
        "other.onnx:onnxruntime",
    ]


def test_a_file_is_named_once(bench, tmp_path):
    path = net(tmp_path / "q.onnx")
    code, _, err = bench(path, path.parent / "." / "q.onnx")
    assert code == 2 and "occurs twice" in err


def test_different_images_are_an_error(bench, tmp_path):
    code, _, err = bench(net(tmp_path / "small.onnx"), net(tmp_path / "grey.onnx", 16, 1, "batch"))
    assert code == 2
    assert "small.onnx takes batches of 1, 3 channels of 8 x 8 pixels; " in err
    assert "grey.onnx takes batches of any number, 1 channel of 16 x 16 pixels" in err


def test_a_graph_of_any_size_takes_that_of_the_others(bench, tmp_path):
    other = net(tmp_path / "any.onnx", batch="batch")
    model = onnx.load(other)
    for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_param = "side"
    onnx.save(model, other)
    code, out, err = bench(net(tmp_path / "fixed.onnx"), other)
    assert (code, err) == (0, "") and "any.onnx" in out


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--seconds", "0", "must be above 0"),
        ("--seconds", "-5", "must be above 0"),
        ("--seconds", "nan", "not a number"),
        ("--threads", str(granted_cores() + 1), "must be at most"),
        ("--batch", "2", "but the graph takes 1"),
    ],
)
def test_numbers_that_make_no_sense_are_wrong_use(bench, tmp_path, option, value, text):
    code, out, err = bench(net(tmp_path / "net.onnx"), option, value)
    assert (code, out) == (2, "") and text in err and " hint: " in err
