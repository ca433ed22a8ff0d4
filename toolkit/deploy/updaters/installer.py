"""Make the installer of an update: the agent, the checks and the runner in one file for Python 3.8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeship import targets
from edgeship.targets import runner
from edgeship.toolkit import core, deploy
from edgeship.toolkit.deploy import agent, layout
from edgeship.toolkit.deploy.updaters import device

FILE = "installer.pyz"

# Written for any Python, so that a too old one gets an answer instead of a SyntaxError.
_MAIN = """\
import sys
if sys.version_info < (3, 8):
    sys.exit("Python %d.%d is too old for the installer: 3.8 or later is needed" % sys.version_info[:2])
import zipfile
from edgeship.toolkit.deploy.updaters.device.install import main
sys.exit(main(zipfile.ZipFile(sys.argv[0]).read, sys.argv[1:]))
"""

# Source files by package; the packages themselves are empty, except those named here.
_MODULES = {
    runner: ("__init__", "failures"),
    core: ("int8_sums", "signals"),
    deploy: ("checks", "layout"),
    agent: ("__init__", *agent.MODULES),
    device: ("__init__", "install", "local_agent"),
}


def make(target: str, settings: dict[str, Any]) -> bytes:
    """Return the installer.

    Args:
        target: Target of the devices.
        settings: For `device.install.Installer`.
    """
    members = {
        "settings.json": json.dumps({**settings, "target": target}, sort_keys=True).encode(),
        "agent.program": agent.program(),
        layout.RUNNER: targets.runner_archive([target]),
    }
    for package, modules in _MODULES.items():
        parts = package.__name__.split(".")
        for end in range(1, len(parts) + 1):
            members.setdefault("/".join([*parts[:end], "__init__.py"]), b"")
        for name in modules:
            file = Path(str(package.__file__)).with_name(f"{name}.py")
            members["/".join([*parts, f"{name}.py"])] = file.read_bytes()
    return runner.archive(_MAIN, members)
