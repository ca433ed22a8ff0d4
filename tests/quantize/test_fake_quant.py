"""Quantization as float arithmetic is that of QuantizeLinear and DequantizeLinear, beyond the range too."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeship.quantization.fake_quant import fake_quantize
from edgeship.toolkit.core.quant import QParams, QuantSpec


@pytest.mark.parametrize(
    ("spec", "zero_point"),
    [(QuantSpec("int8", symmetric=True), 0), (QuantSpec("uint8", symmetric=False), 77)],
    ids=["int8", "uint8"],
)
def test_it_saturates_where_the_operators_do(spec, zero_point):
    scale = 0.25
    values = np.linspace(-400, 400, 4001, dtype=np.float32) * np.float32(scale)
    kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[spec.dtype]
    constants = [
        numpy_helper.from_array(np.float32(scale), "s"),
        helper.make_tensor("z", kind, [], [zero_point]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = fake_quantize(torch.from_numpy(values), QParams((scale,), (zero_point,), spec)).numpy()
    np.testing.assert_array_equal(got, session.run(None, {"x": values})[0])
