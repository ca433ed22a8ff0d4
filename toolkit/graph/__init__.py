"""ONNX graphs: reading, writing, edits, float reference and cost."""
