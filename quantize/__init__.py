"""INT8 post-training quantization: statistics, placement, parameters, Q/DQ graphs."""
