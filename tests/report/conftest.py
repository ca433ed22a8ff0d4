"""A synthetic run for every test of the report."""

import pytest
from synthetic import synthetic_run


@pytest.fixture
def run(tmp_path):
    """Stage -> folder of a synthetic run."""
    return synthetic_run(tmp_path / "run")
