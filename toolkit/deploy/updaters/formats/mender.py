"""Mender artifact for the update module `edgeship`, which calls the installer that the artifact carries.

Mender documentation, "Create a custom Update Module" (protocol v3): the module is called with a state and a
folder, which has the payload in `files` and keeps `tmp` until the update ends.
"""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.deploy.updaters import BUNDLE, RUN, Settings, Update, need_tool, run_tool

SUFFIX = ".mender"
MODULE = "edgeship"
PLACE = f"/usr/share/mender/modules/v3/{MODULE}"

_MODULE = f"""\
#!/bin/sh
# Mender update module of edgeship: on devices {PLACE}, executable.
run="$2/files/{RUN}"
journal="$2/tmp/edgeship.json"
case "$1" in
    NeedsArtifactReboot) echo No ;;
    SupportsRollback) echo Yes ;;
    ArtifactInstall) exec sh "$run" install "$2/files/{BUNDLE}" --journal "$journal" ;;
    ArtifactRollback) exec sh "$run" rollback --journal "$journal" ;;
esac
"""


def check(settings: Settings) -> None:
    """Raise if it cannot be written with these settings.

    Raises:
        RecipeError: There is no device type, or there is a certificate.
        DataError: mender-artifact is not installed.
    """
    if not settings.compatible:
        raise RecipeError(
            "a Mender artifact needs a device type", hint="give --compatible NAME, as in device_type"
        )
    if settings.cert is not None:
        raise RecipeError(
            "devices check a Mender artifact with a public key, not with a certificate",
            hint="leave out --update-cert",
        )
    need_tool("mender-artifact", "mender-artifact")


def write(update: Update, out: Path) -> dict[str, tuple[str, str]]:
    """Write the artifact with `mender-artifact`; a device needs the update module, once."""
    settings, name = update.settings, update.name
    types = [word for each in settings.compatible for word in ("--device-type", each)]
    payload = [word for each in update.files for word in ("--file", str(update.folder / each))]
    signer = [] if settings.key is None else ["--key", str(settings.key)]
    run_tool(
        [
            "mender-artifact", "write", "module-image", "--type", MODULE, "--artifact-name", name, *types,
            "--software-filesystem", "edgeship", "--software-name", update.bundle.manifest["name"],
            "--software-version", name, *payload, *signer, "--output-path", str(out),
        ],
        "check --update-key; older mender-artifact needs another form: `openssl rsa -traditional -in KEY`",
    )  # fmt: skip
    return {"module": (_MODULE, f"update module; copy it to {PLACE} on each device, once, executable")}
