"""Sensitivity by the cached prefix equals whole runs of edited Q/DQ graphs."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from float_graphs import images, residual

from edgeship import targets
from edgeship.quantization import QuantizeOptions, qdq, sensitivity
from edgeship.quantization.calibrate import collect
from edgeship.quantization.fake_quant import fake_quantize
from edgeship.quantization.ptq import prepare
from edgeship.quantization.sensitivity import analyse, to_json
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.parallel import Workers
from edgeship.toolkit.core.statistics import kl_divergence, sqnr_db
from edgeship.toolkit.graph import edit, io


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    path, pixels = residual().save(tmp_path_factory.mktemp("m") / "m.onnx"), images(12, 16)
    model, statistics = io.read_classifier(path).model, collect(path, [pixels], exact=True)
    prepared = prepare(model, statistics, targets.get("openvino").scheme(), QuantizeOptions())
    return prepared, prepared.exact, pixels, analyse(prepared, prepared.exact, pixels)


def run(model, pixels):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    serialized = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


def simulated(model, activations, weights, biases, pixels):
    """Logits by PyTorch, in one go, whose sums end in the same last digits as those of parts."""
    network = TorchExecutor(model)
    for name, qparams in weights.items():
        network.constants[name] = fake_quantize(network.constants[name], qparams)
    shifts = {str(node.outputs[0].name): biases.get(node.name) for node in network.nodes}

    def change(name, value):
        if shifts.get(name) is not None:
            value = value + torch.tensor(shifts[name]).reshape(-1, *[1] * (value.ndim - 2))
        return fake_quantize(value, activations[name]) if name in activations else value

    return network(torch.from_numpy(pixels), change).numpy()


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def taking(model, name, other):
    """A model with the weights of that name from another one."""
    changed = io.copy(model)
    edit.set_constant(changed.graph.initializers[name], edit.constant(other.graph.initializers[name]))
    return changed


def test_every_layer_and_quantizer_has_a_row(analysed):
    prepared, _, _, rows = analysed
    names = [row.name for row in rows]
    assert len(names) == len(prepared.placement.weights) * 2 + len(prepared.placement.activations)
    assert {row.kind for row in rows} == {"Convolution", "FullyConnected", "activation", "weight"}
    assert all((row.sqnr_db is None) == (row.kind in ("activation", "weight")) for row in rows)


@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_rows_of_quantizers_equal_whole_runs(kind, analysed):
    prepared, exact, pixels, rows = analysed
    float_logits = run(exact, pixels)
    everything = simulated(prepared.model, prepared.activations, prepared.weights, prepared.biases, pixels)
    for row in (row for row in rows if row.kind == kind):
        kept = prepared.model
        a, w = prepared.activations, prepared.weights
        if kind == "activation":
            alone = qdq.insert(exact, {row.name: a[row.name]}, {}, {})
            rest = qdq.insert(prepared.model, without(a, row.name), w, prepared.biases)
        else:
            fitted = taking(exact, row.name, prepared.model)
            alone = qdq.insert(fitted, {}, {row.name: w[row.name]}, {})
            kept = taking(prepared.model, row.name, exact)
            rest = qdq.insert(kept, a, without(w, row.name), prepared.biases)
        changed = (without(a, row.name), w) if kind == "activation" else (a, without(w, row.name))
        same = simulated(kept, *changed, prepared.biases, pixels)
        assert row.float_sqnr_db == pytest.approx(sqnr_db(float_logits, same), abs=0.01), row.name
        assert row.float_kl == pytest.approx(kl_divergence(float_logits, same), rel=1e-3)
        alone, rest = run(alone, pixels), run(rest, pixels)
        assert row.alone_sqnr_db == pytest.approx(sqnr_db(float_logits, alone), abs=0.05), row.name
        # in a quantized network a last digit can move a tie by a whole step
        assert row.float_sqnr_db == pytest.approx(sqnr_db(float_logits, rest), abs=2), row.name
        assert row.alone_kl == pytest.approx(kl_divergence(float_logits, alone), rel=0.05, abs=1e-9)
        assert row.float_kl == pytest.approx(kl_divergence(float_logits, rest), rel=0.6)
        expected = sqnr_db(float_logits, same) - sqnr_db(float_logits, everything)
        assert row.drop_db == pytest.approx(expected, abs=0.02)


def test_a_layer_in_float_reads_its_input_before_the_quantizer(analysed):
    """The first layer alone reads the image: its row is that of images, weights and bias together."""
    prepared, exact, pixels, rows = analysed
    row = next(row for row in rows if row.name == "conv0")
    alone = qdq.insert(
        taking(exact, "conv0.weight", prepared.model),
        {"images": prepared.activations["images"]},
        {"conv0.weight": prepared.weights["conv0.weight"]},
        {"conv0": prepared.biases["conv0"]},
    )
    rest = qdq.insert(
        taking(prepared.model, "conv0.weight", exact),
        without(prepared.activations, "images"),
        without(prepared.weights, "conv0.weight"),
        without(prepared.biases, "conv0"),
    )
    float_logits = run(exact, pixels)
    assert row.alone_sqnr_db == pytest.approx(sqnr_db(float_logits, run(alone, pixels)), abs=0.05)
    assert row.float_sqnr_db == pytest.approx(sqnr_db(float_logits, run(rest, pixels)), abs=2)


def test_noise_of_quantizers_adds_up_to_that_of_the_network(tmp_path):
    """To first order errors are independent: without bias correction their powers add up, within 3 dB."""
    path, pixels = residual().save(tmp_path / "m.onnx"), images(12, 16)
    model, statistics = io.read_classifier(path).model, collect(path, [pixels])
    options = QuantizeOptions(effort="fast", observer="minmax")
    prepared = prepare(model, statistics, targets.get("tensorrt").scheme(), options)
    everything = sqnr_db(run(model, pixels), run(prepared.graph(), pixels))
    rows = analyse(prepared, model, pixels)
    powers = [10 ** (-row.alone_sqnr_db / 10) for row in rows if row.sqnr_db is None]
    assert -10 * np.log10(sum(powers)) == pytest.approx(everything, abs=3)
    layers = [10 ** (-row.alone_sqnr_db / 10) for row in rows if row.sqnr_db is not None]
    assert -10 * np.log10(sum(layers)) == pytest.approx(everything, abs=3)


def test_json_has_the_shape_of_the_report(analysed):
    result = json.loads(json.dumps(to_json(analysed[3]), allow_nan=False))
    assert {"name", "kind", "sqnr_db", "drop_db"} <= set(result["layers"][0])
    assert len(result["layers"]) == 7
    assert {row["kind"] for row in result["quantizers"]} == {"activation", "weight"}
    assert all(np.isfinite(row["drop_db"]) for row in result["layers"])


CLUSTERS = [pytest.param(2, backend, marks=pytest.mark.slow) for backend in ("ray", "dask")]


@pytest.mark.parametrize(("workers", "backend"), [(3, "threading"), (2, "loky"), *CLUSTERS])
def test_whoever_measures_gets_the_same_rows(workers, backend, analysed, monkeypatch):
    if backend in ("ray", "dask"):
        pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend], reason="an extra")
    monkeypatch.setattr(sensitivity, "BATCH_PIXELS", 3 * 16 * 16)  # 12 images are four batches
    prepared, exact, pixels, _ = analysed
    assert analyse(prepared, exact, pixels, workers=Workers(workers, backend)) == analyse(
        prepared, exact, pixels
    )
