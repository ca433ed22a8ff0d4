"""The C++ header: Pillow's pixels for any sizes, the library's classes with OpenVINO, TensorRT by stubs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeship.targets.runner import imaging
from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit import export_app

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic")
ORDERS = {"rgb": 0, "bgr": 1, "grey": 2}


def ppm(image):
    return b"P6\n# a comment\n%d %d\n255\n" % image.shape[1::-1] + image.tobytes()


def classify(program, folder, images):
    done = subprocess.run(
        [program, folder, "-"], input=b"".join(map(ppm, images)), capture_output=True, timeout=120
    )
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    return done, [(int(index), np.float32(probability), label) for index, probability, label in rows]


@pytest.fixture(scope="module")
def exported(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("cpp") / "app"
    export_app.write(published.folder, "cpp", out)
    return out


def compiled(folder, source, *flags):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = folder / Path(source).stem
    command = ["g++", *FLAGS, *flags, source, "-o", program]
    subprocess.run(command, check=True, timeout=300)
    return program


def test_the_example_has_at_most_60_lines_and_the_runtime_is_chosen(published, exported, tmp_path):
    assert len((exported / "classify.cpp").read_text(encoding="utf-8").splitlines()) <= 60
    assert "EDGESHIP_RUNTIME openvino" in (exported / "CMakeLists.txt").read_text(encoding="utf-8")
    export_app.write(published.folder, "cpp", tmp_path / "app", "tensorrt-int8")
    text = (tmp_path / "app" / "README.md").read_text(encoding="utf-8")
    assert "EDGESHIP_RUNTIME tensorrt" in (tmp_path / "app/CMakeLists.txt").read_text(encoding="utf-8")
    assert "--saveEngine=model/model.plan" in text and "TensorRT itself: not run here" in re.sub(
        r"\s+", " ", text
    )


@pytest.mark.slow
def test_pixels_and_inputs_are_those_of_pillow(exported, tmp_path):
    program = compiled(tmp_path, HERE / "pixels.cpp", f"-I{exported}")
    random = np.random.default_rng(0)
    compared = 0
    for number in range(200):
        height, width = map(int, random.integers(1, 160, 2))
        crop = [int(side) for side in random.integers(1, 50, 2)]
        resize = (None, int(random.integers(1, 120)), [int(side) for side in random.integers(1, 120, 2)])[
            number % 3
        ]
        channels, filter_ = (3 if number % 5 else 1), imaging.FILTERS[number % 4]
        how = {"resize": resize, "crop": crop, "interpolation": filter_}
        how |= {"mean": [0.485, 0.456, 0.406][:channels], "std": [0.229, 0.224, 0.225][:channels]}
        described = tmp_path / "model.json"
        described.write_text(json.dumps({"schema": 1, "labels": ["a"], "preprocess": how}))
        order = ("rgb", "bgr", "grey")[number % 7 % 3]
        image = random.integers(0, 256, (height, width, 3)[: 2 if order == "grey" else 3], np.uint8)
        given = image[..., ::-1] if order == "bgr" else image
        rows = np.pad(np.ascontiguousarray(given).reshape(height, -1), ((0, 0), (0, number % 9)))
        data = f"{height} {width} {ORDERS[order]} {rows.shape[1]}\n".encode() + rows.tobytes()
        done = subprocess.run([program, described], input=data, capture_output=True, timeout=300)
        try:
            expected = imaging.pixels(image, imaging.read_resize(resize), tuple(crop), filter_, channels)
        except ValueError:
            assert done.returncode == 1 and b"smaller than the crop" in done.stderr
            continue
        compared += 1
        pixels = np.frombuffer(done.stdout[: expected.size], np.uint8).reshape(expected.shape)
        np.testing.assert_array_equal(pixels, expected, err_msg=f"{how} {height} {width}")
        inputs = np.frombuffer(done.stdout[expected.size :], np.float32).reshape(1, channels, *crop)
        np.testing.assert_array_equal(inputs, imaging.normalize(expected[None], how["mean"], how["std"]))
    assert compared > 100


@pytest.mark.slow
def test_openvino_gives_the_classes_of_the_library(published, exported, tmp_path):
    import openvino

    if shutil.which("cmake") is None:
        pytest.skip("needs cmake and g++")
    build = tmp_path / "build"
    cmake = f"-DOpenVINO_DIR={Path(openvino.__path__[0]) / 'cmake'}"
    subprocess.run(
        ["cmake", "-S", exported, "-B", build, cmake], check=True, timeout=120, capture_output=True
    )
    subprocess.run(["cmake", "--build", build], check=True, timeout=300, capture_output=True)
    done, rows = classify(build / "classify", exported / "model", published.images)
    assert done.returncode == 0, done.stderr
    with Classifier(exported / "model") as classifier:
        expected = classifier(published.images)
    assert [row[0] for row in rows] == published.logits["openvino-int8"].argmax(1).tolist()
    assert [row[2] for row in rows] == [each.label for each in expected]
    np.testing.assert_allclose([row[1] for row in rows], [each.probability for each in expected], rtol=1e-6)
    for change, message in (
        ({"labels": ["a"]}, "1 class names for 10 outputs"),
        ({"schema": 2}, "another schema"),
        ({"preprocess": {}}, "no field mean"),
    ):
        copy = tmp_path / "model"
        shutil.copytree(exported / "model", copy, dirs_exist_ok=True)
        record = json.loads((copy / "model.json").read_text())
        (copy / "model.json").write_text(json.dumps({**record, **change}))
        done, _ = classify(build / "classify", copy, published.images[:1])
        assert done.returncode == 1 and message in done.stderr.decode()
    (copy / "model.json").write_text('{"labels": ["a')
    done, _ = classify(build / "classify", copy, published.images[:1])
    assert done.returncode == 1 and "damaged at byte" in done.stderr.decode()
    for data in (b"P5\n1 1\n255\n0", b"P6\n9 9\n255\n0", b"P6\n-1 9\n255\n0", b"P6 x"):
        (tmp_path / "a.ppm").write_bytes(data)
        done = subprocess.run(
            [build / "classify", exported / "model", tmp_path / "a.ppm"], capture_output=True
        )
        assert done.returncode == 1 and b"error: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [False, True])
def test_tensorrt_receives_the_inputs_of_the_library(published, exported, tmp_path, pixels):
    """Against stand-ins for NvInfer.h: an engine whose logits are known sums of its input."""
    flags = ("-DEDGESHIP_TENSORRT", f"-I{HERE / 'stubs'}", f"-I{exported}")
    program = compiled(tmp_path, exported / "classify.cpp", *flags)
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(exported / "model" / "model.json", folder)
    (folder / "model.plan").write_text("16 16 3 10 1" if pixels else "3 16 16 10 0")
    done, rows = classify(program, folder, published.images[:10])
    assert done.returncode == 0, done.stderr
    how = json.loads((folder / "model.json").read_text())["preprocess"]
    for image, row in zip(published.images, rows, strict=False):
        cut = imaging.pixels(image, imaging.read_resize(how["resize"]), (16, 16), how["interpolation"], 3)[
            None
        ]
        given = (
            (cut if pixels else imaging.normalize(cut, how["mean"], how["std"]))
            .reshape(-1)
            .astype(np.float64)
        )
        place = np.arange(given.size)
        logits = [(given * ((place * 7 + k * 3) % 11 - 5)).sum() for k in range(10)]
        assert row[0] == int(np.argmax(logits))
    (folder / "model.plan").write_text("damaged")
    done, _ = classify(program, folder, published.images[:1])
    assert done.returncode == 1 and "magicTag" in done.stderr.decode()
