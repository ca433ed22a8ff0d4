"""ONNX graphs: in and out, edits, reference run, cost."""
