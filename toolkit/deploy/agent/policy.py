"""Check a release against what the owner of the device allows.

<root>/allowed_signers  keys whose signatures count (`ssh-keygen`); without this file nothing is checked
<root>/policy.json      {"model": name or null, "floor": lowest version}; the floor only rises
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeship.toolkit.deploy.agent.object_store import read_json, write_json, write_text
from edgeship.toolkit.deploy.agent.protocol import RefusedError

NAMESPACE = "edgeship"  # of signatures
SIGNATURE = "manifest.json.sig"


class Policy:
    """Signers, model and lowest version that a device accepts."""

    def __init__(self, root: Path) -> None:
        self._signers, self._file = root / "allowed_signers", root / "policy.json"

    @property
    def signed_only(self) -> bool:
        """Return True if the device has trusted signers."""
        return self._signers.exists()

    def describe(self) -> dict[str, Any]:
        """Return model and lowest version."""
        stored = read_json(self._file)
        stored = stored if isinstance(stored, dict) else {}
        floor, model = stored.get("floor"), stored.get("model")
        return {
            "floor": floor if isinstance(floor, int) else 0,
            "model": model if isinstance(model, str) else None,
        }

    def trust(self, signers: str, model: str | None, floor: int) -> None:
        """Replace the signers; set the model, if there is one; raise the lowest version."""
        before = self.describe()
        write_json(self._file, {"model": model or before["model"], "floor": max(floor, before["floor"])})
        write_text(self._signers, signers)

    def raise_floor(self, folder: Path) -> None:
        """Refuse older versions than that of a release from now on."""
        if self.signed_only:
            before, version = self.describe(), _terms(_manifest(folder))[0]
            if version > before["floor"]:
                write_json(self._file, {**before, "floor": version})

    def endorse(self, folder: Path, signature: str) -> None:
        """Replace the signature of an installed release by one of a trusted signer.

        A release that was installed unsigned, or signed by an old key, may come again with another signature.
        """
        file, new = folder / SIGNATURE, folder / f"{SIGNATURE}.new"
        if not self.signed_only or (file.exists() and file.read_text() == signature):
            return
        try:
            write_text(new, signature)
            self._check_signature(folder, new)
            new.replace(file)
        finally:
            with suppress(OSError):
                new.unlink()

    def check(self, folder: Path, times: list[str]) -> None:
        """Raise if the device's owner does not allow a release.

        Args:
            folder: Folder with manifest.json and its signature.
            times: UTC times in the past: a clock without battery may be behind.
        """
        if not self.signed_only:
            return
        self._check_signature(folder, folder / SIGNATURE)
        manifest, policy = _manifest(folder), self.describe()
        version, expires = _terms(manifest)
        today = max([time.strftime("%Y-%m-%d", time.gmtime()), *(moment[:10] for moment in times)])
        name = manifest.get("name")
        if policy["model"] not in (None, name):
            raise RefusedError(
                f"the bundle is of the model {name}, this device takes {policy['model']}",
                "deploy a bundle of that model; `edgeship device trust --model` sets another",
                "policy",
            )
        if version < policy["floor"]:
            raise RefusedError(
                f"the bundle has version {version}, this device takes {policy['floor']} and later",
                "`edgeship rollback` goes back to an installed release; else sign one of a later --version",
                "policy",
            )
        if expires is not None and str(expires) <= today:
            raise RefusedError(
                f"the bundle expired on {expires}", "sign a bundle with a later --expires", "policy"
            )

    def _check_signature(self, folder: Path, signature: Path) -> None:
        """Raise if no trusted signer signed the manifest."""
        if not signature.exists():
            raise RefusedError(
                "this device accepts signed bundles only; this one is not signed",
                "`edgeship bundle RUN --sign KEY`",
                "signature",
            )
        files = ["-f", str(self._signers), "-s", str(signature)]
        find = ["ssh-keygen", "-Y", "find-principals", *files]
        try:
            for principal in _output(find).splitlines():
                verify = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", principal, *files]
                with (folder / "manifest.json").open("rb") as manifest:
                    if subprocess.run(verify, stdin=manifest, stdout=2, check=False).returncode == 0:
                        return
        except OSError as error:
            message = f"cannot check the signature: ssh-keygen: {error.strerror}"
            raise RefusedError(message, "install openssh-client on the device", "signature") from error
        raise RefusedError(
            "the bundle's signature is not from a signer this device trusts",
            f"sign with a key listed in {self._signers} on the device",
            "signature",
        )


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    return manifest if isinstance(manifest, dict) else {}


def _terms(manifest: dict[str, Any]) -> tuple[int, Any]:
    """Return version and expiry; bundles without them are of version 0 and do not expire."""
    terms = manifest.get("release")
    terms = terms if isinstance(terms, dict) else {}
    version = terms.get("version")
    return version if isinstance(version, int) else 0, terms.get("expires")


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.decode()
