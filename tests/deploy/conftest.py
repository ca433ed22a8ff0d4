"""Fixtures: devices on loopback, and bundles for them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import SSHD, Park, Server, make_key, need, scripted

from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.inventory import Device


@pytest.fixture
def park(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Park]:
    need(SSHD, "openssh-server")
    need(shutil.which("ssh"), "openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates privileges
    sockets = tempfile.mkdtemp(prefix="es-")  # paths of sockets must be short
    monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
    park = Park(tmp_path / "park")
    park.folder.mkdir()
    make_key(park.client_key)
    park.client_config.write_text(
        f"Host *\n IdentityFile {park.client_key}\n IdentitiesOnly yes\n LogLevel ERROR\n"
        f" UserKnownHostsFile {park.folder}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
    )
    yield park
    for server in park.servers:
        server.stop()
    shutil.rmtree(sockets, ignore_errors=True)  # ssh masters may remove their sockets at the same time


@pytest.fixture
def device(park: Park) -> tuple[Server, Device]:
    """Return a server and its inventory entry."""
    server = park.server("device")
    return server, park.entry(server)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Return a function that makes scripted bundles."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    numbers = iter(range(1000))
    return lambda **options: scripted(folder / f"{next(numbers)}.tar", **options)
