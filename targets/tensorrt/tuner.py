"""Commands of trtexec's global performance tuner, with golden logits as its accuracy check (11.1 and newer).

The tuner builds a graph by many build routes (values of compiler knobs), times each, and keeps the fastest
whose outputs are close to the reference. The knobs are those of the installed version: `ROUTES` reads them
from `trtexec --helpBuildRoute`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from edgeship.targets.tensorrt.versions import has_flag
from edgeship.toolkit.core.artifact import write_bytes, write_text
from edgeship.toolkit.core.quant import FloatArray, PixelArray

SOURCE = (
    "NVIDIA/TensorRT release 11.1, samples/trtexec/README.md section 7 and samples/common/sampleOptions.cpp; "
    "docs.nvidia.com/deeplearning/tensorrt/latest/performance/tuning.html"
)
FOLDER = "tuner"
PAIRS = 4  # at most; trtexec takes one, or two and more with --refPair
LIMIT = 0.01  # of 1 - cosine similarity
TIMEOUT_S = 3600
ROUTES = '''"""Print the knobs of `trtexec --helpBuildRoute`, one a line; arguments are parts of names."""

import json
import sys

text, words = sys.stdin.read(), sys.argv[1:] or [""]
for knob in json.loads(text[text.index("{"):text.rindex("}") + 1])["tuner_options"]:
    name, allowed = knob["option"], knob["allowed_values"]
    values = allowed[allowed.find("[") + 1:allowed.rfind("]")].split("|")
    if "..." not in allowed and len(values) > 1 and any(word in name for word in words):
        print("%s=[%s]" % (name, "|".join(values)))
'''


def available(version: tuple[int, int]) -> bool:
    """Return True if trtexec of a version has the tuner."""
    return has_flag(version, "--tuneBuildRouteFile")


def write(
    out: Path,
    trtexec: Sequence[str],
    names: tuple[str, str],
    inputs: FloatArray | PixelArray,
    logits: FloatArray,
    batch: int,
) -> str:
    """Write reference files and the reader of knobs; return the commands.

    Args:
        out: Folder of the export; the files go into `FOLDER` below it.
        trtexec: Command of the build, with --saveEngine.
        names: Names of the graph's input and output.
        inputs: N network inputs, N at least `batch`.
        logits: (N, classes) reference outputs.
        batch: Images of one inference.

    Source:
        `SOURCE`.
    """
    pairs = []
    for index in range(min(PAIRS, len(inputs) // batch)):
        part = slice(index * batch, (index + 1) * batch)
        files = f"{FOLDER}/input-{index}.bin", f"{FOLDER}/logits-{index}.bin"
        for file, values in zip(files, (inputs[part], logits[part]), strict=True):
            write_bytes(out / file, values.tobytes())
        pairs.append(
            [
                f"--{kind}={name}:{file}"
                for kind, name, file in zip(("loadInputs", "loadRefOutputs"), names, files, strict=True)
            ]
        )
    if len(pairs) == 1:
        references = pairs[0]
    else:
        references = [text for index, pair in enumerate(pairs) for text in (f"--refPair={index}", *pair)]
    write_text(out / FOLDER / "routes.py", ROUTES)
    build = [text for text in trtexec if text != "--skipInference"]
    tune = [
        *build,
        f"--tuneBuildRouteFile={FOLDER}/routes.txt",
        "--tuningSearch=fast",
        f"--tuningCacheFile={FOLDER}/results.jsonl",
        f"--tuningTimeOut={TIMEOUT_S}",
        "--accuracyAlgorithm=cos",
        f"--accuracyThreshold={LIMIT}",
        *references,
    ]
    routes = f"{build[0]} --helpBuildRoute | python3 {FOLDER}/routes.py conv > {FOLDER}/routes.txt"
    return f"{routes}\n{shlex.join(tune)}"
