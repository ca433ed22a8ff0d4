"""Fixtures: devices on loopback, and bundles for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import Park, Server, running, scripted

from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.inventory import Device


@pytest.fixture
def park(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Park]:
    with running(tmp_path, monkeypatch) as park:
        yield park


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
