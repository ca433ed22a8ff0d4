"""Stub of ONNX Runtime for a fast probe."""

__fake__ = True
__version__ = "1.0-stub"
