"""A run folder as the stages leave it. Every figure in it is synthetic: made up, and only used here."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.results import StageRun

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DEVICE = {
    "cpu": "Synthetic CPU @ 2.0 GHz",
    "arch": "x86_64",
    "instruction_sets": ["avx2", "avx512_vnni"],
    "cores": 2,
    "memory_bytes": 8_000_000_000,
    "power_mode": "performance",
    "clocks_mhz": 2000.0,
    "versions": {"openvino": "2026.4.1", "onnxruntime": "1.32.0"},
    "load_average": [0.4, 0.3, 0.2],
    "other_share": 0.04,
    "stolen_share": 0.0,
    "throttled": False,
    "int8_sums": "exact",
    "timed": "2026-01-02T03:04:05+00:00",
}
HERE = "this machine (Synthetic CPU @ 2.0 GHz)"
SIMULATED = "simulation (ONNX Runtime, integer arithmetic emulated)"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def synthetic_run(
    root: Path, *, images=600, classes=CLASSES, seed=0, labelled=True, noise=0.12
) -> dict[str, Path]:
    """Write a whole synthetic run; return stage -> folder."""
    rng = np.random.default_rng(seed)
    count = len(classes)
    labels = rng.integers(0, count, images)
    logits = rng.normal(size=(images, count)).astype(np.float32)
    logits[np.arange(images), labels] += 3.2
    logits *= 2.5
    variants = {
        "onnxruntime-fp32": logits,
        "openvino-fp32": logits + 1e-6,
        "openvino-int8": logits + noise * rng.normal(size=logits.shape).astype(np.float32),
        "openvino-int8-pruned": logits + 4 * noise * rng.normal(size=logits.shape).astype(np.float32),
        "tensorrt-int8": logits + 1.5 * noise * rng.normal(size=logits.shape).astype(np.float32),
    }
    folders = {
        name: root / name
        for name in (
            "load",
            "prune",
            "finetune",
            "export",
            "select",
            "calibrate",
            "quantize",
            "compile",
            "evaluate",
            "bench",
        )
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    preprocess = {
        "resize": 64,
        "crop": 64,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
    }
    write(
        folders["load"] / "model.json",
        {
            "name": "resnet18",
            "weights_sha256": "5e" * 32,
            "parameters": 11_181_642,
            "preprocess": preprocess,
            "classes": count,
            "preprocess_source": "stated",
        },
    )
    widths = {"stem": 64, "streams": [64, 128, 256, 512], "inner": [[[c], [c]] for c in (64, 128, 256, 512)]}
    narrow = {**widths, "inner": [[[c * 3 // 4], [c // 2]] for c in (64, 128, 256)] + [[[384], []]]}
    write(
        folders["prune"] / "plan.json",
        {
            "method": "obs",
            "widths_before": widths,
            "widths_after": narrow,
            "kept": {},
            "dropped": ["layer4.1"],
            "macs_before": 150_000_000,
            "macs_after": 90_000_000,
            "latency_before_ms": 1.6,
            "latency_after_ms": 1.1,
            "latency_predicted_ms": 1.05,
            "kl": 0.01,
            "agreement": 0.96,
            "expected_drop_pp": 0.8,
            "errors": {f"layer{s}.{b}.conv2": 0.01 * s for s in (1, 2, 3, 4) for b in (0, 1)},
            "warnings": [],
            "frontier": [
                {"latency_ms": 1.0 + 0.2 * i, "top1": 0.84 - 0.3 / (i + 1) ** 2, "chosen": i == 3}
                for i in range(8)
            ],
        },
    )
    write(
        folders["finetune"] / "history.json",
        {"loss": [1.0, 0.5], "accuracy": [0.8, 0.9], "score": [0.1, 0.05]},
    )
    write(
        folders["export"] / "graphs.json",
        {
            "graphs": {
                "float": {"file": "float.onnx", "macs": 150_000_000, "parameters": 11_181_642},
                "pruned": {"file": "pruned.onnx", "macs": 90_000_000, "parameters": 6_000_000},
            },
            "parity": 3.1e-6,
            "batch": 1,
            "classes": count,
            "class_names": [],
            "preprocess": preprocess,
        },
    )
    write(
        folders["select"] / "manifest.json",
        {"seed": 0, "source": "train", "source_digest": "ab" * 32, "entries": [["a.png", "0" * 64, 0]] * 300},
    )
    (folders["calibrate"] / "float").mkdir()
    write(folders["calibrate"] / "float" / "statistics.json", {"images": 300})
    write(
        folders["select"] / "findings.json",
        [
            {
                "severity": "warning",
                "what": "3 calibration images are nearly black",
                "hint": "look at them with `edgeship data`",
            }
        ],
    )
    layers = [
        f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3, 4) for block in (0, 1) for conv in (1, 2)
    ]
    layers = ["conv1", *layers, "fc"]
    write(
        folders["quantize"] / "sensitivity.json",
        {
            target: {
                "layers": [
                    {
                        "name": name,
                        "kind": "FullyConnected" if name == "fc" else "Convolution",
                        "sqnr_db": round(40 - 0.6 * i, 2),
                        "drop_db": round(0.05 * (i % 5) + 0.01, 3),
                        "reverted": False,
                    }
                    for i, name in enumerate(layers)
                ]
            }
            for target in ("openvino", "tensorrt")
        },
    )
    edges = np.linspace(-1, 6, 129)
    counts = (1e5 * np.exp(-((edges[:-1] - 0.5) ** 2))).astype(int).tolist()
    write(
        folders["quantize"] / "quantize.json",
        {
            target: {
                "scheme": target,
                "effort": "balanced",
                "observer": "logits",
                "warnings": [],
                "activations": {
                    name: {
                        "dtype": "int8",
                        "scale": 0.01 * (i + 1),
                        "zero_point": 0,
                        "low": -1.0,
                        "high": 3.0 + i,
                        "counts": counts,
                    }
                    for i, name in enumerate(layers)
                },
                "weights": {
                    name: {
                        "bits": 8,
                        "channels": 64,
                        "smallest_scale": 0.001,
                        "median_scale": 0.01,
                        "largest_scale": 0.04 + 0.002 * i,
                    }
                    for i, name in enumerate(layers)
                },
            }
            for target in ("openvino", "openvino-pruned", "tensorrt")
        },
    )

    def audit(precision):
        return [
            {
                "name": name,
                "kind": "FullyConnected" if name == "fc" else "Convolution",
                "precision": "fp32" if precision == "int8" and name == "layer2.0.conv1" else precision,
                "weighted": True,
                "warning": "its input is used by a float layer"
                if precision == "int8" and name == "layer2.0.conv1"
                else "",
                "time_ms": round(0.05 + 0.01 * i, 3),
            }
            for i, name in enumerate(layers)
        ] + [
            {
                "name": "maxpool",
                "kind": "Pooling",
                "precision": precision,
                "weighted": False,
                "warning": "",
                "time_ms": 0.02,
            }
        ]

    compiled = {}
    for name in variants:
        target, precision = name.removesuffix("-pruned").rsplit("-", 1)
        compiled[name] = {
            "file": "model.xml",
            "runs_here": target != "tensorrt",
            "note": "compiled and run"
            if target != "tensorrt"
            else "accepted by NVIDIA's parser; no GPU here",
            "audit": [] if target == "tensorrt" else audit(precision),
            "warnings": [],
            "size_bytes": 44_700_000 if precision == "fp32" else 11_300_000,
            "error": None,
            "hint": None,
        }
    write(folders["compile"] / "compiled.json", {"variants": compiled})
    right = logits.argmax(1) == labels
    accuracy = {}
    for name, values in variants.items():
        drop, interval = statistics.paired_drop(right, values.argmax(1) == labels)
        top5 = (np.argsort(-values, 1)[:, :5] == labels[:, None]).any(1).mean()
        accuracy[name] = {
            "top1": float((values.argmax(1) == labels).mean()) if labelled else None,
            "top5": float(top5) if labelled else None,
            "images": images,
            "source": "simulated" if name.startswith("tensorrt") else "measured",
            "measured_on": SIMULATED if name.startswith("tensorrt") else HERE,
            "drop_pp": drop if labelled else None,
            "drop_ci95_pp": list(interval) if labelled else None,
            "agreement": statistics.agreement(logits, values),
            "sqnr_db": None if name == "onnxruntime-fp32" else statistics.sqnr_db(logits, values),
        }
        (folders["evaluate"] / "logits").mkdir(exist_ok=True)
        np.save(folders["evaluate"] / "logits" / f"{name}.npy", values)
    np.save(folders["evaluate"] / "labels.npy", labels if labelled else np.full(images, -1))
    write(
        folders["evaluate"] / "accuracy.json",
        {"data": {"name": "synthetic", "images": images, "classes": list(classes)}, "variants": accuracy},
    )
    write(
        folders["evaluate"] / "images.json",
        {
            "source": "synthetic",
            "digest": f"{seed:064x}",
            "names": [f"{classes[label]}/{i:05d}.png" for i, label in enumerate(labels)],
        },
    )
    medians = {
        "onnxruntime-fp32": 6.1,
        "openvino-fp32": 5.2,
        "openvino-int8": 1.6,
        "openvino-int8-pruned": 1.1,
    }
    write(
        folders["bench"] / "latency.json",
        {
            "included": "inference call, input and output copies",
            "threads": 1,
            "batch": 1,
            "how": {"memory_bytes": "a process of its own", "end_to_end_ms": "resize, crop, inference"},
            "not_measured": {"energy_mj": "no power sensor"},
            "variants": {
                name: {
                    "memory_bytes": round(20e6 * median),
                    "resident_bytes": round(15e6 * median),
                    "end_to_end_ms": [median + 0.9, median + 1.0, median + 9.0],
                    "samples_ms": (
                        median * np.exp(0.02 * rng.normal(size=300)) + 0.1 * rng.exponential(size=300)
                    ).tolist(),
                    "throughput_ips": 1000 / median,
                    "throughput": {str(b): 1000 / median * (1 + 0.1 * np.log2(b)) for b in (1, 2, 4, 8, 16)},
                }
                for name, median in medians.items()
            },
        },
    )
    write(folders["bench"] / "device.json", DEVICE)
    return folders


STAGES = [StageRun(name, 1.5, name == "load") for name in ("load", "export", "quantize", "evaluate", "bench")]
COMMAND = "edgeship run quickstart --set quantize.effort=max"


def thumbnail(index: int) -> bytes:
    """A synthetic picture whose colour encodes its index."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (index % 256, index // 256, 128)).save(stream, "PNG")
    return stream.getvalue()
