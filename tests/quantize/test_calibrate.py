"""One pass over the images: exact, whatever the batches; bad activations are named."""

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import Graph, images, residual

from edgeship.quantization.activation_collector import fastest_float
from edgeship.quantization.calibrate import collect
from edgeship.quantization.placement import quantizable_tensors
from edgeship.toolkit.core.errors import DataError, QuantizationError
from edgeship.toolkit.graph import io


def tensors(path, pixels):
    """Every candidate of a graph in ONNX Runtime, (N, C, ...)."""
    model = onnx.load(path)
    names = [name for name in quantizable_tensors(io.read_classifier(path).model) if name != "images"]
    made = {name for node in model.graph.node for name in node.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in made - {"logits"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    parts = [session.run(None, {"images": image[None]}) for image in pixels]
    result = {n: np.concatenate(v) for n, v in zip(outputs, zip(*parts, strict=True), strict=True)}
    return {"images": pixels, **{name: result[name] for name in names}}


@pytest.mark.parametrize("graph_batch", ["batch", 1, 4])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_extremes_are_exact_on_every_tensor(graph_batch, batch, tmp_path):
    path, pixels = residual(graph_batch).save(tmp_path / "m.onnx"), images(7, 16)
    if graph_batch == 4:  # the reference runs image by image
        reference = tensors(residual(1).save(tmp_path / "one.onnx"), pixels)
    else:
        reference = tensors(path, pixels)
    got = collect(path, [pixels[i : i + batch] for i in range(0, 7, batch)], exact=True)
    assert got.images == 7
    assert list(got.tensors) == list(reference)
    for name, values in reference.items():
        axes = tuple(i for i in range(values.ndim) if i != 1)
        seen, size = got.tensors[name], np.abs(values).max()
        if seen.low.min() < 0 or values.min() < 0:
            np.testing.assert_allclose(seen.low, values.min(axes), atol=1e-5 * size)
        np.testing.assert_allclose(seen.high, values.max(axes), atol=1e-5 * size)


def test_the_sample_holds_values_of_the_tensor_only(tmp_path):
    path, pixels = residual().save(tmp_path / "m.onnx"), images(3, 16)
    reference = tensors(path, pixels)
    for name, seen in collect(path, [pixels], exact=True).tensors.items():
        values = np.sort(reference[name].ravel())
        nearest = values[np.searchsorted(values, seen.sample.ravel()).clip(0, len(values) - 1)]
        below = values[(np.searchsorted(values, seen.sample.ravel()) - 1).clip(0)]
        away = np.minimum(np.abs(nearest - seen.sample.ravel()), np.abs(below - seen.sample.ravel()))
        assert away.max() <= 1e-5 * np.abs(values).max(), name


def test_the_sample_covers_the_map_evenly(tmp_path):
    """Of 512 channels a 32nd part of the rows is kept: the first of every map alone, if each 32nd were."""
    places = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) + 1
    g = Graph(4, channels=1)
    path = g.head(g.unary("Relu", g.conv("images", 512, 1, weight=np.ones((512, 1, 1, 1)), bias=False)))
    seen = collect(path.save(tmp_path / "m.onnx"), [np.repeat(places, 100, 0)] * 5, exact=True)
    counts = np.bincount(seen.tensors["relu1"].sample[:, 0].astype(int), minlength=17)[1:]
    assert len(seen.tensors["relu1"].sample) < 5 * 100 * 16 / 16
    assert counts.min() >= counts.mean() / 2


def test_memory_does_not_grow_with_the_images(tmp_path):
    path = residual().save(tmp_path / "m.onnx")

    def kept(count):
        stream = (images(64, 16, seed=i) for i in range(count))
        got = collect(path, stream)
        return sum(t.sample.nbytes for t in got.tensors.values()), got.probe.nbytes

    few, many = kept(40), kept(160)
    assert many[0] <= 4 * 2**18 * 17  # SAMPLE_VALUES of float32 in each of 17 tensors at most
    assert many[0] <= 1.6 * few[0]
    assert many[1] == 4 * 3 * 16 * 16 * 5121  # half of the 10240, which are more than 2**13
    assert few[1] == 4 * 3 * 16 * 16 * 40 * 64


def test_no_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no calibration image"):
        collect(residual().save(tmp_path / "m.onnx"), [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_image_names_the_tensor(bad, tmp_path):
    pixels = images(2, 16)
    pixels[1, 0, 3, 3] = bad
    with pytest.raises(QuantizationError, match="'images' is NaN or infinite"):
        collect(residual().save(tmp_path / "m.onnx"), [pixels])


def test_an_activation_that_overflows_is_named(tmp_path):
    g = Graph()
    first = g.conv("images", 4, weight=np.full((4, 3, 3, 3), 1e30))
    second = g.conv(first, 4, weight=np.full((4, 4, 3, 3), 1e30))
    path = g.head(g.conv(g.unary("Relu", second), 4)).save(tmp_path / "m.onnx")
    with pytest.raises(QuantizationError, match=r"'relu2'|'conv1'"):
        collect(path, [np.abs(images(2))])


@pytest.mark.parametrize("graph_batch", ["batch", 1, 4])
@pytest.mark.parametrize("batch", [3, 7])
def test_the_largest_magnitudes_of_every_image_are_told_in_order(graph_batch, batch, tmp_path):
    path, pixels = residual(graph_batch).save(tmp_path / "m.onnx"), images(7, 16)
    reference = tensors(residual(1).save(tmp_path / "one.onnx"), pixels)
    magnitudes = []
    got = collect(path, [pixels[i : i + batch] for i in range(0, 7, batch)], magnitudes.append, exact=True)
    rows = np.concatenate(magnitudes)
    assert rows.shape == (7, len(got.tensors))
    for index, values in enumerate(reference.values()):
        expected = np.abs(values).reshape(7, -1).max(1)
        np.testing.assert_allclose(rows[:, index], expected, atol=1e-5 * expected.max())


def test_the_fastest_float_moves_extremes_by_less_than_one_in_a_hundred(tmp_path):
    """Three layers deep; the images are what they are, whatever the graph computes in."""
    path, pixels = residual().save(tmp_path / "m.onnx"), images(7, 16)
    exact, fast = collect(path, [pixels], exact=True), collect(path, [pixels])
    assert (exact.precision, fast.precision) == ("f32", fastest_float())
    for name, seen in fast.tensors.items():
        expected = exact.tensors[name]
        np.testing.assert_allclose(seen.low, expected.low, atol=0.01 * expected.largest, err_msg=name)
        np.testing.assert_allclose(seen.high, expected.high, atol=0.01 * expected.largest, err_msg=name)
        difference = np.sqrt(np.mean((seen.sample - expected.sample) ** 2))
        assert difference <= 0.01 * np.sqrt(np.mean(expected.sample**2)), name
    for part in ("low", "high", "sample"):
        np.testing.assert_array_equal(
            getattr(fast.tensors["images"], part), getattr(exact.tensors["images"], part)
        )


def test_the_same_images_give_the_same_statistics(tmp_path):
    path, pixels = residual().save(tmp_path / "m.onnx"), images(40, 16)
    one, other = (collect(path, [pixels[i : i + 8] for i in range(0, 40, 8)]) for _ in range(2))
    for name, seen in one.tensors.items():
        for part in ("low", "high", "sample"):
            np.testing.assert_array_equal(getattr(seen, part), getattr(other.tensors[name], part))


@pytest.mark.parametrize("graph_batch", ["batch", 4])
def test_images_that_fill_up_a_batch_do_not_count(graph_batch, tmp_path):
    path, pixels = residual(graph_batch).save(tmp_path / "m.onnx"), images(7, 16)
    got = collect(path, [pixels[:5], pixels[5:]])
    assert len(got.tensors["images"].sample) == 7 * 4 * 4
    assert {len(seen.sample) % 7 for seen in got.tensors.values()} == {0}
