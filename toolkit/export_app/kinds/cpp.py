"""C++17 program with OpenVINO or TensorRT: one header, an example, CMake."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme, tensorrt_build
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino", "tensorrt")
SUMMARY = "C++17 header and example with CMake, for OpenVINO or TensorRT"
FILES = Path(__file__).parent.parent / "cpp"
OPENVINO = '-DOpenVINO_DIR=$(python3 -c "import openvino; print(openvino.__path__[0])")/cmake'


def write(source: Source, folder: Path) -> Readme:
    """Write header, example, CMakeLists.txt and the engine."""
    runtime = source.variant.target
    for name in ("edgeship_classifier.hpp", "classify.cpp"):
        shutil.copyfile(FILES / name, folder / name)
    cmake = (FILES / "CMakeLists.txt").read_text(encoding="utf-8")
    write_text(
        folder / "CMakeLists.txt", cmake.replace("EDGESHIP_RUNTIME openvino", f"EDGESHIP_RUNTIME {runtime}")
    )
    source.copy_engine(folder / "model")
    if runtime == "tensorrt":
        build = tensorrt_build.command(source, graph="model/model.onnx", plan="model/model.plan")
        start = f"{build}\ncmake -B build && cmake --build build"
        checked = (
            "with TensorRT compiled and run against stand-ins for its headers in edgeship's tests; TensorRT "
            "itself: not run here."
        )
    else:
        start = f"cmake -B build {OPENVINO} && cmake --build build"
        checked = "built and run in edgeship's tests with the OpenVINO of its Python package."
    return Readme(
        start=f"{start}\nbuild/classify model image.ppm",
        text=(
            '```cpp\nedgeship::Classifier classifier("model");\n'
            "edgeship::Image image{frame.data, frame.rows, frame.cols, edgeship::Color::bgr, frame.step};\n"
            "std::cout << classifier(image).top(1)[0].label;\n```",
            "An image is decoded uint8 (H, W, 3), RGB or BGR as stated, or grey. The header resizes, crops "
            "and normalizes as Pillow and the calibration do, to the bit. The example reads PPM images, also "
            "several from standard input (`-`), and prints index, probability and class name.",
        ),
        checked=f"the pixels are the library's for all filters, sizes and crops; {checked}",
    )
