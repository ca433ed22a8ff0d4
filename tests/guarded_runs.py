"""A run with a guard, of a network whose INT8 form has other classes on some images."""

import torch

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models import resnet, weights

PREPROCESS = Preprocess(16, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network(folder):
    """Write a random network whose classes are spread over the digits; return its file."""
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    dataset = open_dataset("digits:train")
    parts = batches(dataset, list(range(0, len(dataset), 4)), PREPROCESS, batch=64)
    stream = net.forward_stem(torch.cat([torch.from_numpy(part.images) for part in parts]))
    with torch.no_grad():
        for _, _, _, block in net.blocks():
            stream = block(stream)
        features = net.pool(stream)
        net.fc.weight.copy_(torch.randn(net.fc.weight.shape) / features.std(0))
        net.fc.bias.copy_(-(net.fc.weight @ features.mean(0)))
    weights.save(net, folder)
    return folder / "model.safetensors"


def table(folder, **guard):
    """Return the table of a recipe with a guard."""
    mean, std = PREPROCESS.mean, PREPROCESS.std
    return {
        "load": {"weights": str(network(folder)), "preprocess": {"mean": mean, "std": std}},
        "export": {"size": 16},
        "select": {"source": "digits:train", "images": 100},
        "compile": {"targets": ["openvino", "onnxruntime"], "precisions": ["int8"]},
        "guard": {"max_flips": 0.005, "images": "all", **guard},
        "evaluate": {"source": "digits:test"},
        "bench": {"runs": 200, "throughput_s": 0.01, "warmup_s": 0.0},
    }
