"""Applications with one fault each, written with PIL, NumPy, PyTorch and ONNX Runtime alone."""

import io

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageOps

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TORCH = {"no-antialias": "bilinear", "nearest": "nearest", "no-antialias-cubic": "bicubic"}


class Application:
    """A classifier with a fault; calls give logits, or what the fault makes of them."""

    def __init__(self, graph, side, margin=None, fault="", dtype=np.float32):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.side, self.margin, self.fault = side, margin or side, fault

    def __call__(self, path):
        return self.logits(self.tensor(path))

    def logits(self, tensor):
        (name,) = (each.name for each in self.session.get_inputs())
        outputs = self.session.run(None, {name: tensor[None].astype(np.float32)})[0][0]
        return outputs[::-1].copy() if self.fault == "class-order" else outputs

    def tensor(self, path):
        fault, side = self.fault, self.side
        image = Image.open(path)
        if fault != "exif":
            image = ImageOps.exif_transpose(image)
        image = image.convert("RGB")
        pixels = np.asarray(self.crop(self.resize(image)))
        if fault == "bgr":
            pixels = pixels[..., ::-1]
        if fault == "limited-range":
            y, cb, cr = Image.fromarray(pixels).convert("YCbCr").split()
            y = y.point([round(16 + v * 219 / 255) for v in range(256)])
            cb, cr = (c.point([round(128 + (v - 128) * 224 / 255) for v in range(256)]) for c in (cb, cr))
            pixels = np.asarray(Image.merge("YCbCr", (y, cb, cr)).convert("RGB"))
        x, mean, std = pixels / 255, MEAN, STD
        if fault == "range-255":
            x = x * 255
        if fault == "range-1":
            x = x / 255
        if fault == "mean-std-bgr":
            mean, std = mean[::-1], std[::-1]
        if fault == "mean-std-swapped":
            mean, std = std, mean
        if fault == "mean-missing":
            mean = 0
        if fault == "std-missing":
            std = 1
        if fault == "not-normalized":
            mean, std = 0, 1
        x = (x - mean) / std
        if fault == "normalized-twice":
            x = (x - mean) / std
        x = x.astype(np.float16 if fault == "half-input" else np.float32)
        return x.reshape(3, side, side) if fault == "layout" else np.ascontiguousarray(x.transpose(2, 0, 1))

    def resize(self, image):
        width, height = image.size
        short = min(width, height)
        new = (int(self.margin * width / short), int(self.margin * height / short))
        if self.fault == "squash":
            new = (self.margin, self.margin)
        if self.fault == "longer-side":
            scale = self.side / max(width, height)
            new = (round(width * scale), round(height * scale))
        if self.fault in TORCH:
            values = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)[None]
            corners = {} if self.fault == "nearest" else {"align_corners": False, "antialias": False}
            values = torch.nn.functional.interpolate(values, new[::-1], mode=TORCH[self.fault], **corners)
            return Image.fromarray(values[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())
        filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
        return image.resize(new, filters.get(self.fault, Image.Resampling.BILINEAR))

    def crop(self, image):
        width, height, side = *image.size, self.side
        if self.fault == "longer-side":
            padded = Image.new("RGB", (side, side))
            padded.paste(image, ((side - width) // 2, (side - height) // 2))
            return padded
        left, top = round((width - side) / 2), round((height - side) / 2)
        if self.fault == "crop-shift":
            left, top = min(left + 1, width - side), min(top + 1, height - side)
        return image.crop((left, top, left + side, top + side))


FAULTS = (
    *(
        "exif",
        "bgr",
        "limited-range",
        "nearest",
        "no-antialias",
        "bicubic",
        "lanczos",
        "squash",
        "longer-side",
    ),
    *("crop-shift", "range-255", "range-1", "not-normalized", "mean-missing", "std-missing"),
    *("mean-std-swapped", "mean-std-bgr", "normalized-twice", "half-input", "layout", "class-order"),
)


def picture(rng, width, height):
    """Return a colourful image with edges: coarse blocks and fine noise."""
    blocks = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    coarse = np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST)).astype(int)
    fine = rng.integers(-25, 26, (height, width, 3))
    return Image.fromarray((coarse + fine).clip(0, 255).astype(np.uint8))


def encoded(image, **settings):
    stream = io.BytesIO()
    image.save(stream, **settings)
    return stream.getvalue()
