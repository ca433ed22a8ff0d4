"""Fixtures: the command line in the folder that a test module prepares."""

import pytest

from edgeship.toolkit.cli import app


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Return a function that runs a command in `place`, with a store there: code, output, errors."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("EDGESHIP_STORE", str(place / "store"))

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main([str(argument) for argument in arguments])
        return left.value.code or 0, *capsys.readouterr()

    return call
