"""A browser for the tests of the documentation."""

from browsing import axe, browser  # noqa: F401
