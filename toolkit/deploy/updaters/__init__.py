"""Write a bundle as an update for RAUC, SWUpdate or Mender.

An update carries the bundle and an installer, which runs on the device with the gates of `edgeship deploy`;
its exit code is the updater's result. A format is one file in `formats`, named after the updater, with

    SUFFIX               of the update
    check(settings)      raise if it cannot be written with these settings
    write(update, out)   write it; returns further files: suffix -> content, and where a device needs it, once
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from edgeship.toolkit.core.artifact import replacing, write_bytes, write_text
from edgeship.toolkit.core.errors import DataError, RecipeError, nearest

if TYPE_CHECKING:
    from edgeship.toolkit.deploy.bundle import Bundle

BUNDLE, RUN = "bundle.tar", "run.sh"  # in an update
PLACE = "/var/lib/edgeship"  # on the device; applications of every user can read it, unlike root's home
_PLACE = re.compile(r"(/[A-Za-z0-9._-]+)+")
_PYTHON = "for example: --python /opt/edgeship/bin/python3"
_RUN = """\
#!/bin/sh
# Run the installer that lies next to this file.
exec {python} "$(dirname "$0")/{installer}" "$@"
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an update.

    Attributes:
        compatible: Device types that take it (RAUC: compatible, SWUpdate: hardware revisions).
        target: Target of the devices; empty: the only one of the bundle.
        root: Folder on the device, absolute.
        python: Command of a Python 3.8+ on the device that can import its runtime, quoted as for a shell.
        health: Shell command that must succeed after the switch; empty: the self-test.
        keep: Number of most recent releases to keep; 0: all.
        withdraw: The update goes back from the bundle, where its release is live, in place of installing it.
        key: Private key of the updater's signature, PEM; None: no signature.
        cert: Its certificate, PEM.
        rauc_format: Format of a RAUC bundle.
    """

    compatible: tuple[str, ...]
    target: str = ""
    root: str = PLACE
    python: str = "python3"
    health: str = ""
    keep: int = 0
    withdraw: bool = False
    key: Path | None = None
    cert: Path | None = None
    rauc_format: Literal["verity", "plain"] = "verity"


@dataclass(frozen=True, slots=True)
class Update:
    """Update to write.

    Attributes:
        bundle: Its bundle.
        settings: Its settings.
        folder: Folder with `files`; formats add others.
        files: BUNDLE (if it is to be installed), `installer.FILE`, and RUN, which starts the installer.
    """

    bundle: Bundle
    settings: Settings
    folder: Path
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of the update."""
        return self.bundle.id + "-withdrawn" * self.settings.withdraw

    @property
    def version(self) -> str:
        """Return the version of the release."""
        return str((self.bundle.manifest.get("release") or {}).get("version", 0))


def names() -> list[str]:
    """Return the names of the updaters."""
    return sorted(file.stem for file in (Path(__file__).parent / "formats").glob("[!_]*.py"))


def suffix(updater: str) -> str:
    """Return the suffix of an updater's files."""
    return str(_format(updater).SUFFIX)


def check(updater: str, settings: Settings) -> None:
    """Raise if an update cannot be written with these settings, before any work.

    Raises:
        RecipeError: A setting is missing, or not of this updater.
        DataError: The updater's tool is not installed.
    """
    if not _PLACE.fullmatch(settings.root) or ".." in PurePosixPath(settings.root).parts:
        raise RecipeError(
            f"--root {settings.root} is no absolute path of a folder in letters, digits, '.', '_' and '-'",
            hint=f"for example: --root {PLACE}",
        )
    if any(not each.isprintable() or not each for each in (*settings.compatible, settings.python)):
        raise RecipeError(
            "--compatible and --python are texts of one line",
            hint="for example: --compatible jetson-orin-nano",
        )
    _words(settings.python)
    _format(updater).check(settings)


def write(updater: str, bundle: Bundle, out: Path, settings: Settings) -> dict[Path, str]:
    """Write an update.

    Args:
        updater: One of `names()`.
        bundle: The bundle.
        out: File to write, atomically.
        settings: Its settings.

    Returns:
        Further files, which a device needs once, and what to do with each.

    Raises:
        RecipeError: The bundle has several targets, and none is chosen.
        DataError: The updater's tool is not installed, or fails.
    """
    from edgeship.toolkit.deploy.updaters import installer

    check(updater, settings)
    target = _target(bundle, settings.target)
    words = _words(settings.python)
    own = {name: getattr(settings, name) for name in ("root", "health", "keep", "withdraw")}
    program = installer.make(target, {**own, "updater": updater, "bundle": bundle.id, "python": words})
    files = (BUNDLE, installer.FILE, RUN)[settings.withdraw :]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".update-", dir=out.parent) as scratch:
        folder = Path(scratch) / "content"
        folder.mkdir(mode=0o755)
        if not settings.withdraw:
            shutil.copyfile(bundle.path, folder / BUNDLE)
        write_bytes(folder / installer.FILE, program)
        python = "python3" if len(words) > 1 else shlex.quote(words[0])  # with arguments: that of the agent
        write_text(folder / RUN, _RUN.format(python=python, installer=installer.FILE))
        update = Update(bundle, settings, folder, files)
        more = _format(updater).write(update, written := Path(scratch) / f"update{suffix(updater)}")
        with replacing(out) as temporary:
            written.replace(temporary)
    further = {out.with_name(f"{out.name}.{name}"): file for name, file in more.items()}
    for path, (text, _) in further.items():
        write_text(path, text)
    return {path: place for path, (_, place) in further.items()}


def run_tool(command: Sequence[str], hint: str) -> None:
    """Run a tool of an updater.

    Raises:
        DataError: It fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{command[0]} failed: {lines[-1]}", hint=hint)


def need_tool(name: str, package: str) -> None:
    """Raise if a tool is not installed.

    Raises:
        DataError: It is not.
    """
    if shutil.which(name) is None:
        raise DataError(f"cannot run {name}: it is not installed", hint=f"`apt install {package}`")


def need_pair(settings: Settings) -> None:
    """Raise if only one of key and certificate is given.

    Raises:
        RecipeError: One is missing.
    """
    if (settings.key is None) != (settings.cert is None):
        raise RecipeError(
            "a signature needs a key and its certificate, and one is missing",
            hint="give both --update-key FILE and --update-cert FILE",
        )


def _words(python: str) -> list[str]:
    try:
        words = shlex.split(python)
    except ValueError as error:
        raise RecipeError(f"--python {python}: {error}", hint=_PYTHON) from error
    if not words:
        raise RecipeError("--python is empty", hint=_PYTHON)
    return words


def _target(bundle: Bundle, chosen: str) -> str:
    if not chosen and len(bundle.targets) == 1:
        return bundle.targets[0]
    if chosen not in bundle.targets:
        listed = ", ".join(bundle.targets)
        raise RecipeError(
            f"no target named '{chosen}' in the bundle, which has {listed}"
            if chosen
            else f"the bundle is for {listed}, and devices of an update have one target",
            hint=nearest(chosen, bundle.targets) if chosen else "choose with --target NAME",
        )
    return chosen


def _format(updater: str) -> Any:
    return importlib.import_module(f"edgeship.toolkit.deploy.updaters.formats.{updater}")
