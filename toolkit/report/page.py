"""One HTML page that holds everything it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from toolkit.core.results import RunReport


def page(
    report: RunReport,
    environment: jinja2.Environment,
    context: dict[str, Any],
    thumbnails: Callable[[int], bytes] | None,
) -> str:
    """Render the page.

    Args:
        report: The report.
        environment: Where the templates are, with escaping on.
        context: What every template gets.
        thumbnails: The encoded image file of an evaluation image, by its index.
    """
    return environment.get_template("report.html.j2").render(context)
