"""From a float graph to a Q/DQ graph that its target takes; tensors that go wrong, and those that do not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import Graph, images, residual

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.quantization.ptq import prepare
from edgeship.quantization.statistics import Statistics
from edgeship.targets.tensorrt import lint
from edgeship.toolkit.core.errors import QuantizationError, ToolkitError
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.models import resnet
from edgeship.toolkit.models.export import export

EFFORTS = ("fast", "balanced", "max")


def quantized(graph, folder, pixels, target="openvino", **options):
    path = graph if isinstance(graph, type(folder)) else graph.save(folder / "float.onnx")
    summary = quantize(
        path,
        collect(path, [pixels]),
        targets.get(target).scheme(),
        QuantizeOptions(**options),
        folder / "int8.onnx",
    )
    return path, folder / "int8.onnx", summary


def run(path, pixels):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


def sqnr_db(exact, coarse):
    return 10 * np.log10(np.square(exact).sum() / max(np.square(exact - coarse).sum(), 1e-30))


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_logits_stay_close_on_images_it_has_not_seen(target, effort, tmp_path):
    model, int8, summary = quantized(residual(), tmp_path, images(64, 16), target, effort=effort)
    other = images(32, 16, seed=5)
    assert sqnr_db(run(model, other), run(int8, other)) > 25
    assert [text for text in summary["warnings"] if "learned rounding was dropped" not in text] == []
    assert summary["scheme"] == target
    assert all(row["scale"] > 0 and row["low"] <= row["high"] for row in summary["activations"].values())


def test_balanced_beats_fast_where_channels_differ(tmp_path):
    """The channel ranges of this network differ by up to a hundred times."""
    g = residual()
    random = np.random.default_rng(0)
    for tensor in g.initializers:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 4:
            loud = array * 10.0 ** random.uniform(-1, 1, (len(array), 1, 1, 1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(loud.astype(np.float32), tensor.name))
    pixels, other = images(64, 16), images(64, 16, seed=5)
    reached = {}
    for effort in EFFORTS:
        model, int8, _ = quantized(g, tmp_path, pixels, effort=effort)
        reached[effort] = sqnr_db(run(model, other), run(int8, other))
    assert reached["balanced"] > reached["fast"] + 1


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet18") / "float.onnx"
    export(resnet.build(resnet.architecture("resnet18", classes=10), seed=0), path, size=32, batch=1)
    return path


def test_the_tensorrt_graph_is_legal_for_every_version_in_the_field(resnet18, tmp_path):
    _, int8, _ = quantized(resnet18, tmp_path, images(2, 32), "tensorrt", effort="fast")
    assert lint.lint(int8, "8.5") == []


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet20"])
def test_openvino_runs_every_convolution_and_add_in_int8(name, resnet18, tmp_path):
    path = resnet18
    if name != "resnet18":
        path = tmp_path / "float.onnx"
        export(resnet.build(resnet.architecture(name, classes=10), seed=0), path, size=32, batch=1)
    _, int8, _ = quantized(path, tmp_path, images(2, 32), "openvino", effort="fast")
    compiled = targets.get("openvino").compile(int8, tmp_path / "engine", "int8")
    assert compiled.warnings == ()
    layers = [layer for layer in compiled.audit if layer.kind in ("Convolution", "Add")]
    assert len(layers) == {"resnet18": 20 + 8, "preact_resnet20": 19 + 9}[name]
    assert {layer.precision for layer in layers} == {"int8"}


@pytest.mark.parametrize("effort", EFFORTS)
class TestBadInput:
    """Either right, or an error that names the tensor."""

    def close(self, graph, folder, pixels, effort, other=None, at_least=25):
        model, int8, summary = quantized(graph, folder, pixels, effort=effort)
        other = pixels if other is None else other
        got = run(int8, other)
        assert np.isfinite(got).all()
        assert sqnr_db(run(model, other), got) > at_least
        return summary

    def test_all_zero_images(self, effort, tmp_path):
        summary = self.close(residual(), tmp_path, np.zeros((4, 3, 16, 16), np.float32), effort)
        assert any("activation 'images' is zero" in each for each in summary["warnings"])

    def test_constant_images(self, effort, tmp_path):
        self.close(residual(), tmp_path, np.full((4, 3, 16, 16), 0.7, np.float32), effort)

    def test_one_image(self, effort, tmp_path):
        self.close(residual(), tmp_path, images(1, 16), effort, other=images(16, 16, seed=3), at_least=15)

    def test_a_channel_pruned_to_zeros(self, effort, tmp_path):
        g = Graph()
        weight = g.random.normal(size=(4, 3, 3, 3))
        weight[1] = 0
        first = g.unary("Relu", g.conv("images", 4, weight=weight, bias=False))
        self.close(g.head(g.conv(first, 4)), tmp_path, images(8), effort)

    def test_a_dead_relu(self, effort, tmp_path):
        g = Graph()
        first = g.unary(
            "Relu", g.conv(g.unary("Relu", g.conv("images", 4)), 4, weight=np.full((4, 4, 3, 3), -1))
        )
        self_bias = next(t for t in g.initializers if t.name == "conv2.bias")
        self_bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, -1, np.float32), "conv2.bias"))
        summary = self.close(g.head(g.conv(first, 4)), tmp_path, images(8), effort)
        assert any("activation 'relu3' is zero" in each for each in summary["warnings"])

    def test_an_outlier_of_a_million(self, effort, tmp_path):
        """One pixel of one image: nothing breaks, and the tensors whose scale it spoils are named."""
        pixels = images(32, 16)
        pixels[3, 1, 5, 5] = 1e6
        _, int8, summary = quantized(residual(), tmp_path, pixels, effort=effort)
        assert np.isfinite(run(int8, images(8, 16, seed=9))).all()
        named = [text for text in summary["warnings"] if "'images'" in text and "steps" in text]
        assert len(named) == 1 and "an outlier of 1e+06" in named[0]

    def test_an_outlier_that_leaves_enough_steps_gives_no_warning(self, effort, tmp_path):
        pixels = images(32, 16)
        pixels[3, 1, 5, 5] = 20
        summary = self.close(residual(), tmp_path, pixels, effort, other=images(16, 16, seed=3), at_least=15)
        warnings = [text for text in summary["warnings"] if "learned rounding was dropped" not in text]
        assert warnings == []

    def test_a_convolution_without_bias(self, effort, tmp_path):
        g = Graph()
        first = g.unary("Relu", g.conv("images", 8, bias=False))
        self.close(g.head(g.conv(first, 8, bias=False)), tmp_path, images(32), effort)

    def test_a_matrix_product_gets_no_bias_it_cannot_have(self, effort, tmp_path):
        g = Graph()
        self.close(g.head(g.conv("images", 8), kind="MatMul"), tmp_path, images(32), effort)

    @pytest.mark.parametrize("kind", ["Sigmoid", "HardSwish"])
    def test_other_activations(self, kind, effort, tmp_path):
        g = Graph()
        self.close(g.head(g.conv(g.unary(kind, g.conv("images", 8)), 8)), tmp_path, images(32), effort)

    def test_a_block_whose_channels_come_last(self, effort, tmp_path):
        """As in ConvNeXt: what the residual Add reads comes out of a Transpose, products are over maps."""
        g = Graph()
        first = g.node("Transpose", [g.conv("images", 8)], (8, 8, 8), perm=[0, 2, 3, 1])
        gain, shift = g.constant("gain", np.linspace(0.5, 2, 8)), g.constant("shift", np.linspace(-1, 1, 8))
        normal = g.node("LayerNormalization", [first, gain, shift], (8, 8, 8), axis=-1)
        before = g.node("Transpose", [normal], (8, 8, 8), perm=[0, 3, 1, 2])
        x = g.node("Transpose", [g.conv(before, 8, group=8)], (8, 8, 8), perm=[0, 2, 3, 1])
        x = g.node("MatMul", [x, g.constant("up", g.random.normal(0, 0.5, (8, 32)))], (8, 8, 32))
        x = g.node("Mul", [x, g.unary("Erf", x)], (8, 8, 32))
        x = g.node("MatMul", [x, g.constant("down", g.random.normal(0, 0.2, (32, 8)))], (8, 8, 8))
        x = g.add(before, g.node("Transpose", [x], (8, 8, 8), perm=[0, 3, 1, 2]))
        summary = self.close(g.head(x), tmp_path, images(32), effort)
        assert not any("effort 'fast'" in text for text in summary["warnings"])

    @pytest.mark.parametrize("batch", [1, "batch"])
    def test_a_network_that_mixes_images(self, batch, effort, tmp_path):
        g = Graph(batch=batch)
        first = g.conv("images", 8)
        mean = g.node("ReduceMean", [first], (1, 1, 1), axes=[0, 2, 3])
        x = g.add(first, g.node("Mul", [mean, g.constant("little", 0.01)], (1, 1, 1)))
        g.head(g.conv(g.unary("Relu", x), 8))
        if batch != 1:
            with pytest.raises(QuantizationError, match=r"'mul2'.* 32.* mixes images"):
                quantized(g, tmp_path, images(32), effort=effort)
            return
        model, int8, summary = quantized(g, tmp_path, images(32), effort=effort)
        one = images(1, seed=5)
        assert sqnr_db(run(model, one), run(int8, one)) > 20
        assert not any("effort 'fast'" in text or "no gradient" in text for text in summary["warnings"])

    def test_shared_weights_grouped_convolutions_and_concat(self, effort, tmp_path):
        g = Graph()
        first = g.unary("Relu", g.conv("images", 8))
        grouped = g.unary("Relu", g.conv(first, 8, group=4, bias=False))
        shared = g.nodes[-2].input[1]
        again = g.unary("Relu", g.conv(grouped, 8, group=4, bias=False, shared=shared))
        self.close(g.head(g.conv(g.concat(grouped, again), 8)), tmp_path, images(32), effort)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinite_activations_are_named(self, bad, effort, tmp_path):
        pixels = images(4, 16)
        pixels[2, 0, 0, 0] = bad
        with pytest.raises(QuantizationError, match="'images'"):
            quantized(residual(), tmp_path, pixels, effort=effort)
        assert not (tmp_path / "int8.onnx").exists()

    def test_weights_that_are_nan_are_named(self, effort, tmp_path):
        g = Graph()
        g.head(g.conv("images", 4, weight=np.full((4, 3, 3, 3), np.nan)))
        with pytest.raises(ToolkitError, match=r"'conv0\.weight'"):
            quantized(g, tmp_path, images(2), effort=effort)

    def test_statistics_of_another_graph(self, effort, tmp_path):
        path = residual().save(tmp_path / "m.onnx")
        empty = Statistics(1, {}, images(1, 16))
        with pytest.raises(QuantizationError, match="no statistics of 'images'"):
            quantize(
                path,
                empty,
                targets.get("openvino").scheme(),
                QuantizeOptions(effort=effort),
                tmp_path / "o.onnx",
            )


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("observer", ["logits", "mse", "minmax"])
def test_the_summary_names_the_observer_that_ran(observer, effort, tmp_path):
    _, _, summary = quantized(residual(), tmp_path, images(16, 16), observer=observer, effort=effort)
    fast = effort == "fast"
    assert summary["observer"] == ("mse" if observer == "logits" and fast else observer)
    assert summary["weight_rounding"] == ("nearest" if fast else "gptq")
    assert summary["bias_correction"] != fast


def test_mse_is_another_rule_than_logits(tmp_path):
    scales = {}
    for observer in ("logits", "mse"):
        _, _, summary = quantized(residual(), tmp_path, images(16, 16), observer=observer)
        scales[observer] = [row["scale"] for row in summary["activations"].values()]
    assert scales["logits"] != scales["mse"]


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("effort", ["balanced", "max"])
def test_nearest_weights_are_the_nearest_integers(effort, bias_correction, tmp_path):
    path = residual().save(tmp_path / "float.onnx")
    statistics = collect(path, [images(32, 16)])
    options = QuantizeOptions(effort=effort, weight_rounding="nearest", bias_correction=bias_correction)
    found = prepare(io.read_classifier(path).model, statistics, targets.get("tensorrt").scheme(), options)
    assert found.weight_rounding == "nearest" and bool(found.biases) == bias_correction
    model = found.model.graph.initializers
    for name, q in found.weights.items():
        exact = edit.constant(found.exact.graph.initializers[name])
        axis = (
            next(i for i, size in enumerate(exact.shape) if size == len(q.scale)) if len(q.scale) > 1 else 0
        )
        step = np.reshape(q.scale, [-1 if i == axis else 1 for i in range(exact.ndim)])
        nearest = np.rint(exact / step).clip(-127, 127) * step
        written = edit.constant(model[name])
        if written is not exact:
            assert np.allclose(written, nearest, atol=1e-6) or np.array_equal(written, exact)
