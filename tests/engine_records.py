"""Small engine records: layers, profiles, and the log that trtexec prints of them."""

import json
import re

INT8, FP32 = "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP32"
BLANK = "N/A due to dynamic shapes"
I8I8 = (
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_tilesize64x64x64"
)
I8F32 = I8I8.replace("i8i8_i8i32", "i8f32_i8i32")
F16 = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nchw_tilesize128x64x32"


def layer(name, inputs, outputs, kind="CaskConvolution", weights="", tactic="", layout=BLANK, **more):
    item = {"Name": name, "LayerType": kind, **more}
    for role, names in (("Inputs", inputs), ("Outputs", outputs)):
        item[role] = [
            {"Name": each, "Location": "Device", "Dimensions": [-1, 8], "Format/Datatype": layout}
            for each in names
        ]
    if weights:
        item["Weights"] = {"Type": weights, "Count": 9}
    if tactic:
        item["TacticName"] = tactic
    return item


def dynamic():
    """Every format is "N/A due to dynamic shapes"; kernels and weights state the precision."""
    return {
        "Layers": [
            layer(
                "Reformatting CopyNode for Input Tensor 0 to w + QuantizeLinear_7 + Conv_9",
                ["x"],
                ["r"],
                "Reformat",
            ),
            layer("w1 + QuantizeLinear_7 + Conv_9 + Relu_11", ["r"], ["a"], weights="Int8", tactic=I8I8),
            layer("w2 + QuantizeLinear_20 + Conv_22 + Relu_24", ["a"], ["b"], weights="Int8", tactic=I8I8),
            layer("Reformatting CopyNode for Input Tensor 1 to Conv_34", ["a"], ["a2"], "Reformat"),
            layer(
                "w3 + QuantizeLinear_32 + Conv_34 + Add_36", ["b", "a2"], ["c"], weights="Int8", tactic=I8F32
            ),
            layer("layer1.1.conv1 + Conv_40", ["c"], ["y"], weights="Half", tactic=F16),
        ],
        "Bindings": ["x", "y"],
    }


def names_only():
    return {"Layers": [item["Name"] for item in dynamic()["Layers"]], "Bindings": ["x", "y"]}


def two_profiles():
    content = dynamic()
    again = json.loads(re.sub(r'("Name": "[^"]+)"', r'\1 [profile 1]"', json.dumps(content["Layers"])))
    again[5].update(Weights={"Type": "Int8"}, TacticName=I8I8)
    return {"Layers": content["Layers"] + again, "Bindings": ["x", "y", "x [profile 1]", "y [profile 1]"]}


def line(item):
    """A layer in the one-line format of trtexec."""

    def tensors(role):
        listed = (
            f"Name: {t['Name']}, Location: Device, Dimensions: [1,8], Format/Datatype: {t['Format/Datatype']}"
            for t in item[role]
        )
        return "[ " + ", ".join(f"{{ {text} }}" for text in listed) + "]"

    text = f"Name: {item['Name']}, LayerType: {item['LayerType']}"
    text += f", Inputs: {tensors('Inputs')}, Outputs: {tensors('Outputs')}"
    text += ", ParameterType: Convolution, Kernel: [3,3]"
    if "Weights" in item:
        text += f', Weights: {{"Type": "{item["Weights"]["Type"]}", "Count": 9}}'
        text += ', Bias: {"Type": "Float", "Count": 64}'
    text += f", TacticName: {item.get('TacticName', '')}, TacticValue: 0x1"
    return text + ", Metadata: [ONNX Layer: a]\x1e[ONNX Layer: b]"


TIMES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def table(names, last):
    rows = ["=== Profile (100 iterations ) ==="]
    head = (
        "   Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer"
        if last
        else "   Layer   Time (ms)   Avg. Time (ms)   Time %"
    )
    rows.append(head)
    for name, time in [*zip(names, TIMES, strict=True), ("Total", sum(TIMES))]:
        numbers = [f"{100 * time:.2f}", f"{time:.4f}", *([f"{time:.4f}"] if last else []), "1.0"]
        rows.append("   ".join([*numbers, name] if last else ["  ", name, *numbers]))
    return [f"[11/20/2024-10:00:03] [I] {row}" for row in rows]


def log(content, last=True, profile=True):
    listed = [line(item) if isinstance(item, dict) else item for item in content["Layers"]]
    names = [item["Name"] if isinstance(item, dict) else item for item in content["Layers"]]
    rows = [
        "&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=m.onnx --int8 --dumpLayerInfo",
        "[11/20/2024-10:00:00] [I] Precision: FP32+INT8",
        "[11/20/2024-10:00:01] [V] [TRT] Layers:",
        "Name: elsewhere, LayerType: Reformat, Inputs: [], Outputs: []",
        "[11/20/2024-10:00:02] [I] Layer Information:",
        "[11/20/2024-10:00:02] [I] Layers:",
        *listed,
        "",
        "Bindings:",
        *content["Bindings"],
        "[11/20/2024-10:00:02] [I] Starting inference",
        *(table(names, last) if profile else []),
        "&&&& PASSED TensorRT.trtexec [TensorRT v8601] # trtexec",
    ]
    return "\n".join(rows) + "\n"
