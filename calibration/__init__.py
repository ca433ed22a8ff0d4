"""Select, preprocess, check and load image data sets."""
