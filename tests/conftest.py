"""In CI a missing part is a failure, not a skip; what the machine does meanwhile is none."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ALLOWED = (
    "GPU",
    "../shared",
    "Python 3.8",
    "Debian's Python",
    "network",
    "registry",
)  # what no machine of ours is promised to have

# A busy machine is slow, and that proves nothing. The same examples every time: a failure is everybody's.
settings.register_profile(
    "edgeship", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edgeship")


def pytest_configure():
    """Hear Ctrl-C, which a shell has its background jobs ignore, and with them all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _strict(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and not any(word in reason for word in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"may not be missing in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("CI"):
        _strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if os.environ.get("CI"):
        _strict(report)
    return report


@pytest.fixture(scope="session")
def python38():
    """A Python 3.8, the oldest that programs on devices support."""
    candidates = [
        shutil.which("python3.8"),
        *map(str, Path.home().glob(".pyenv/versions/3.8*/bin/python3.8")),
    ]
    for candidate in filter(None, candidates):
        done = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if done.stdout.strip() == "(3, 8)":
            return candidate
    pytest.skip("no Python 3.8 here; the syntax is checked by ast.parse(feature_version=(3, 8))")
