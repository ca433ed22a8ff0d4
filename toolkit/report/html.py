"""Self-contained HTML page: style, script, charts and pictures in one file."""

from __future__ import annotations

import base64
import io
import pkgutil
from collections.abc import Callable, Mapping

import jinja2

from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.results import RunReport
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.charts import charts

SIDE = 96  # side of a thumbnail, in pixels
TINY = 24  # side in pixels below which a picture is enlarged


def page(
    report: RunReport,
    environment: jinja2.Environment,
    context: Mapping[str, object],
    thumbnails: Callable[[int], bytes] | None,
) -> str:
    """Render the page.

    Args:
        report: The report.
        environment: Jinja environment of the templates, with escaping on.
        context: Variables of every template.
        thumbnails: Function from the index of an evaluation image to its encoded file.
    """
    import plotly

    pictures: dict[int, str] = {}
    if thumbnails is not None:
        indices = {flip.image for v in report.variants if v.paired for flip in v.paired.flips}
        pictures = {i: uri for i in sorted(indices) if (uri := _thumbnail(thumbnails, i))}
    shown = charts(report)
    return environment.get_template("report.html.j2").render(
        **context,
        charts=shown,
        figures={
            name: {"data": c.data, "layout": c.layout, "choices": c.choices} for name, c in shown.items()
        },
        pictures=pictures,
        options=list(formatting.flat_options(report.recipe)),
        plotly=(pkgutil.get_data(plotly.__name__, "package_data/plotly.min.js") or b"").decode(),
    )


def _thumbnail(read: Callable[[int], bytes], index: int) -> str | None:
    """Return a small copy of an image as a data URI; None if the image cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read(index))) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, ToolkitError):
        return None
    if max(small.size) < TINY:  # e.g. digits of 8 pixels: keep the pixels sharp
        factor = SIDE // max(small.size)
        small = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
    tiny = max(small.size) <= SIDE // 2
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "PNG" if tiny else "JPEG", quality=85)
    kind = "png" if stream.getvalue().startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
