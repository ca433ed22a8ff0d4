"""In continuous integration a missing part is a failure, not a skip."""

import os

import pytest

ALLOWED = (
    "GPU",
    "../shared",
    "Python 3.8",
    "network",
    "registry",
)  # what no machine of ours is promised to have


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
