"""Decoding of image formats to upright RGB; undecodable files are named."""

import struct
import zlib

import numpy as np
import pytest
from measured import peak
from PIL import Image

from edgeship.calibration.images import decode
from edgeship.toolkit.core.errors import DataError


def png16(values):
    """Return a 16-bit grey PNG (the modes that Pillow can write differ between versions)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def values(data):
    image = decode(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_grey_is_repeated(picture, encode):
    decoded = values(encode(picture(0, mode="L"), "PNG"))
    assert (decoded == np.asarray(picture(0, mode="L"))[..., None]).all()


def test_transparency_is_dropped_and_colours_stay(picture, encode):
    image = picture(0).convert("RGBA")
    image.putalpha(0)
    assert (values(encode(image, "PNG")) == np.asarray(picture(0))).all()


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128] * 128)])
def test_palette_is_looked_up_without_a_warning(picture, encode, transparency):
    image = picture(0).quantize(256)
    options = {} if transparency is None else {"transparency": transparency}
    assert (values(encode(image, "PNG", **options)) == np.asarray(image.convert("RGB"))).all()


def test_one_bit(encode):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert values(encode(image, "PNG"))[..., 1].tolist() == [[0, 255], [255, 0]]


def test_cmyk(encode):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red, green, blue = values(encode(image, "TIFF"))[4, 4]
    assert (red, green, blue) == (255, 0, 0)


def test_16_bits_keep_the_high_byte():
    grey = np.array([[0, 255, 256, 511], [32768, 65535, 4660, 1]])
    assert values(png16(grey))[..., 0].tolist() == [[0, 0, 1, 1], [128, 255, 18, 0]]


def test_samples_without_a_range_are_refused(encode):
    for image in (
        Image.fromarray(np.full((4, 4), 0.5, np.float32)),
        Image.fromarray(np.full((4, 4), 1 << 20, np.int32)),
    ):
        with pytest.raises(DataError, match="no agreed range"):
            decode(encode(image, "TIFF"), "x.tif")


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, None),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_applied(picture, encode, orientation, undo):
    upright = picture(0)
    stored = upright if undo is None else upright.transpose(undo)  # as stored by a rotated camera
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (values(encode(stored, "PNG", exif=exif)) == np.asarray(upright)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_matter(jpeg):
    data = jpeg(0)
    segment = b"Exif\0\0II*\0" + b"\xff" * 40
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert (values(broken) == values(data)).all()


def test_first_frame_of_an_animation(encode):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert values(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_named(picture, encode, kind, part):
    data = encode(picture(0, (200, 150)), kind)
    with pytest.raises(DataError, match=r"cat/7\.img") as caught:
        decode(data[: int(len(data) * part)], "cat/7.img")
    assert "--skip-unreadable" in caught.value.hint


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff\xe0" + b"\0" * 100, b"<svg/>"])
def test_what_is_no_image_is_named(data):
    with pytest.raises(DataError, match=r"cat/7\.img"):
        decode(data, "cat/7.img")


def test_a_bomb_of_pixels_is_named(encode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(encode(Image.new("L", (100, 100)), "PNG"), "x.png")


def test_an_empty_file_is_called_empty():
    with pytest.raises(DataError, match=r"x\.png is empty \(0 bytes\)"):
        decode(b"", "x.png")


def test_formats_with_programs_inside_stay_closed():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n"
    with pytest.raises(DataError, match="is not an image"):
        decode(eps, "x.jpg")


@pytest.mark.parametrize(
    ("size", "mode", "kind", "fits"),
    [
        ((9_999, 9_999), "RGB", "JPEG", False),  # Pillow's own limit
        ((9_000, 9_000), "RGB", "JPEG", True),
        ((8_000, 8_000), "CMYK", "JPEG", False),
        ((8_000, 8_000), "L", "PNG", False),
        ((7_000, 7_000), "L", "PNG", True),
        ((6_000, 6_000), "I;16", "TIFF", False),
        ((60_000, 1_000), "P", "GIF", False),
    ],
)
def test_a_size_in_the_header_takes_no_memory(encode, size, mode, kind, fits):
    data = bytearray(encode(Image.new(mode, (16, 16)), kind))
    width, height = size
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    else:
        data = bytearray(encode(Image.new(mode, (1, 1)), kind))
        for tag, value in ((256, width), (257, height)):
            place = data.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in data else -1
            place = place if place >= 0 else data.index(struct.pack("<HH", tag, 3))
            data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    message = ""
    with peak() as used:
        try:
            decode(bytes(data), "x.img")  # missing pixels are grey, or an error
        except DataError as error:
            message = str(error)
    assert ("more than 400" in message or "exceeds limit" in message) is not fits
    assert used.megabytes < (500 if fits else 50) and used.seconds < 2
