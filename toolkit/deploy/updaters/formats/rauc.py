"""RAUC bundle with a full custom handler: RAUC checks the signature and mounts, the installer does the rest.

The device needs no slot for it. RAUC manual, "Full Custom Update" and "Handler Interface": the exit code of
the handler is the result, and its lines that start with `<<` are the status.
"""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.deploy.updaters import BUNDLE, RUN, Settings, Update, need_pair, need_tool, run_tool

SUFFIX = ".raucb"
HANDLER = "install.sh"
TOOLS = {"rauc": "rauc", "mksquashfs": "squashfs-tools"}

_MANIFEST = """\
[update]
compatible={compatible}
version={name}
description=edgeship release

[bundle]
format={format}

[handler]
filename={handler}
"""
_HANDLER = """\
#!/bin/sh
here=$(dirname "$0")
exec sh "$here/{run}" install "$here/{bundle}" --mark "<< error "
"""


def check(settings: Settings) -> None:
    """Raise if it cannot be written with these settings.

    Raises:
        RecipeError: There is not one device type, or no key.
        DataError: RAUC is not installed.
    """
    if len(settings.compatible) != 1:
        raise RecipeError(
            f"a RAUC bundle is for one device type, not {len(settings.compatible)}",
            hint="give --compatible NAME once, as in the device's system.conf",
        )
    if settings.key is None and settings.cert is None:
        raise RecipeError(
            "a RAUC bundle needs a signature", hint="give --update-key FILE and --update-cert FILE"
        )
    need_pair(settings)
    for tool, package in TOOLS.items():
        need_tool(tool, package)


def write(update: Update, out: Path) -> dict[str, tuple[str, str]]:
    """Write the bundle with `rauc bundle`; a device needs no further file."""
    settings, folder = update.settings, update.folder
    manifest = _MANIFEST.format(
        compatible=settings.compatible[0],
        name=update.name,
        format=settings.rauc_format,
        handler=HANDLER,
    )
    write_text(folder / "manifest.raucm", manifest)
    write_text(folder / HANDLER, _HANDLER.format(run=RUN, bundle=BUNDLE))
    (folder / HANDLER).chmod(0o755)
    signer = [f"--cert={settings.cert}", f"--key={settings.key}"]
    run_tool(["rauc", "bundle", *signer, str(folder), str(out)], "check --update-key and --update-cert")
    return {}
