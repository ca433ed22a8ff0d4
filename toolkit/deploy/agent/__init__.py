"""Device agent: sent over every connection, never installed (Python 3.8, standard library)."""

from __future__ import annotations

import json
from pathlib import Path

# Each module imports only earlier ones.
MODULES = ("protocol", "subprocesses", "object_store", "policy", "releases", "commands")


def source() -> bytes:
    """Return the modules as JSON: list of (module name, source text), in import order."""
    folder = Path(__file__).parent
    modules = [(f"{__name__}.{name}", (folder / f"{name}.py").read_text("utf-8")) for name in MODULES]
    return json.dumps(modules).encode()


# The argument of `python -c`: runs the first line of input. One line: csh has no line breaks in quoted words.
START = 'import os; exec(os.fdopen(os.dup(0), "rb", 0).readline())'

# The first line of input: reads the modules from the connection and runs the last one; nothing is written to
# the device's disk. It runs on any Python, so that an old one can answer. Its newline ends text of the login.
_BOOT = """\
import json, os, sys, types
sys.stdout.write("\\n")
if sys.version_info < (3, 8):
    error = "its Python is %d.%d, and 3.8 is needed" % sys.version_info[:2]
    hint = ("set python in the inventory to a Python 3.8 that imports the runtime (JetPack 5, a container); "
            "for JetPack 4: `edgeship export-jetson`")
    print(json.dumps({{"error": error, "hint": hint, "code": "python"}}))
    sys.exit(1)
sys.stdout.flush()
left, text = {size}, b""
while left:
    block = os.read(0, left) or sys.exit(1)
    left, text = left - len(block), text + block
for name, source in json.loads(text.decode()):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
sys.exit(module.main())
"""


def program() -> bytes:
    """Return the input of `START` that runs the agent."""
    modules = source()
    return f"exec({_BOOT.format(size=len(modules))!r})\n".encode() + modules
