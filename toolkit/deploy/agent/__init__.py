"""The device's end of a connection: sent anew every time, never installed (Python 3.8, standard library)."""

from __future__ import annotations

import json
from pathlib import Path

MODULES = (
    "protocol",
    "subprocesses",
    "object_store",
    "releases",
    "commands",
)  # each imports only those before it


def source() -> bytes:
    """What `BOOT` reads on the device: JSON, module name and source text of every module, in order."""
    folder = Path(__file__).parent
    modules = [(f"{__name__}.{name}", (folder / f"{name}.py").read_text("utf-8")) for name in MODULES]
    return json.dumps(modules).encode()


# Reads the modules from the connection and runs the last one: nothing is written on the device, and the
# process list shows this text and a number.
BOOT = """\
import json, os, sys, types
left, text = int(sys.argv[1]), b""
while left:
    block = os.read(0, left) or sys.exit(1)
    left, text = left - len(block), text + block
for name, source in json.loads(text.decode()):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
sys.exit(module.main())
"""
