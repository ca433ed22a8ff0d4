"""Evaluation images as one file that a device reads with the standard library and NumPy only.

Layout; integers are little-endian:

    offset  0   8 bytes   magic: b"EDGESET1"
    offset  8   uint64    H, the length of the header, padding included
    offset 16   H bytes   header: UTF-8 JSON, filled up with spaces; 16 + H is a multiple of 64
    16 + H                images: uint8 (images, height, width, channels), resized and cropped already
    after these           labels: int32 (images,), a class index or -1 for unknown

Header: schema (1), name, classes [name of class 0, ...] (empty without labels), images, height, width,
channels (3: RGB, 1: grey), preprocess {resize, crop, mean, std, interpolation}, source_digest, skipped
(names of images that could not be decoded), sha256 (of all that follows the header, hexadecimal).

The network's input, each step in float32: (pixel / 255 - mean) / std per channel, then NHWC -> NCHW. With it
a device computes on exactly the numbers that calibration and evaluation computed on:

    with open(path, "rb") as stream:
        magic, length = stream.read(8), int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    shape = tuple(header[key] for key in ("images", "height", "width", "channels"))
    images = numpy.memmap(path, numpy.uint8, "r", 16 + length, shape)
    labels = numpy.fromfile(path, "<i4", header["images"], offset=16 + length + images.size)

Equal inputs give equal files, byte for byte.
"""
