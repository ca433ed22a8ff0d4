"""The device runner: the modules of this package, as one file that runs on a device."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Mapping

from edgeship.toolkit.core import signals

VERSION = "1"
FILE_NAME = "edgeship_runner.pyz"  # `python3 edgeship_runner.pyz probe`: Python 3.8+, nothing to install

# Written for any Python, so that a too old one gets an answer instead of a SyntaxError.
_MAIN = """\
import json, sys
if sys.version_info < (3, 8):
    cause = "Python %d.%d is too old for the runner" % sys.version_info[:2]
    cure = "run it with Python 3.8 or later (JetPack 5.0 and later bring one)"
    print(json.dumps({"event": "result", "ok": False, "error":
          {"code": "python-too-old", "message": cause, "cause": cause, "cure": cure}}))
    sys.exit(1)
from edgeship.targets.runner.cli import main
sys.exit(main())
"""

_SHARED = "edgeship/toolkit/core/signals.py"  # the one module outside this package
CLASSIFY_NAME = "classify.py"

# In the folder of a release: a program, and the module that applications import.
CLASSIFY = """\
\"\"\"Classify images with this release: `python3 classify.py photo.jpg`, or `from classify import Classifier`.\"\"\"
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.realpath(FOLDER), "runner", "%s"))
from edgeship.targets.runner.classifier import Classifier, Prediction, Result  # noqa: E402, F401
from edgeship.targets.runner.classify import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(FOLDER))
""" % FILE_NAME


def source(backends: Mapping[str, bytes] | None = None) -> bytes:
    """Return the runner as one file, a zip archive that Python runs; the same bytes on every machine.

    Args:
        backends: Further backends: name -> content of a file that imports from `edgeship` only this package.
    """
    folder = Path(__file__).parent
    inside = "edgeship/targets/runner"
    packages = ("edgeship", "edgeship/targets", "edgeship/toolkit", "edgeship/toolkit/core")
    members = {f"{package}/__init__.py": b"" for package in packages}
    members[_SHARED] = Path(signals.__file__).read_bytes()
    for path in sorted(folder.rglob("*.py")):
        members[f"{inside}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    members.update({f"{inside}/backends/{name}.py": data for name, data in (backends or {}).items()})
    return archive(_MAIN, members)


def archive(main: str, members: Mapping[str, bytes]) -> bytes:
    """Return a program as one file, a zip archive that Python runs; equal members give equal bytes.

    Args:
        main: Source of __main__.py.
        members: Path inside -> content.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:  # stored: no zlib version in the bytes
        for name, data in {"__main__.py": main.encode(), **members}.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            file.writestr(info, data)
    return b"#!/usr/bin/env python3\n" + stream.getvalue()


def write_golden(folder: Path, images: Any, logits: Any, files: Mapping[int, bytes] | None = None) -> None:
    """Write golden inputs and the logits they must give, as the runner's `selftest` reads them.

    Args:
        folder: Where golden.json, inputs.f32 (or .u8) and logits.f32 go; made if absent.
        images: (N, C, H, W) array, preprocessed; or uint8 (N, H, W, C) of a graph that takes pixels.
        logits: (N, classes) array.
        files: Image files of some inputs, by row, for the test of an application.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs, kind = ("inputs.u8", "u1") if images.dtype == "uint8" else ("inputs.f32", "<f4")
    names = {row: f"image-{row}" for row in files or {}}
    contents = {inputs: images.astype(kind).tobytes(), "logits.f32": logits.astype("<f4").tobytes()}
    contents |= {names[row]: data for row, data in (files or {}).items()}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    record = {
        "shape": list(images.shape),
        "classes": logits.shape[-1],
        "inputs": inputs,
        "logits": "logits.f32",
        "files": {str(row): name for row, name in names.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    (folder / "golden.json").write_text(json.dumps(record, sort_keys=True) + "\n", encoding="utf-8")
