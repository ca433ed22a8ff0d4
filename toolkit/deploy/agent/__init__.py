"""Device agent: sent over every connection, never installed (Python 3.8, standard library)."""

from __future__ import annotations

import json
from pathlib import Path

# Each module imports only earlier ones.
MODULES = ("protocol", "subprocesses", "object_store", "releases", "commands")


def source() -> bytes:
    """Return the input of `BOOT`: JSON list of (module name, source text), in import order."""
    folder = Path(__file__).parent
    modules = [(f"{__name__}.{name}", (folder / f"{name}.py").read_text("utf-8")) for name in MODULES]
    return json.dumps(modules).encode()


# Reads the modules from the connection and runs the last one. Nothing is written to the device's disk; the
# process list shows only this text and a length.
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
