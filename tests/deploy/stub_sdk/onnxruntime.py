"""Enough of ONNX Runtime for a probe to find it, at once."""

__fake__ = True
__version__ = "1.0-stub"
