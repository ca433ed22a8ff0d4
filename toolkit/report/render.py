"""Renderers of the report: JSON, Markdown, HTML, JUnit XML and terminal table."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.toolkit.core.artifact import plain, read_json, write_json, write_text
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import RunReport
from edgeship.toolkit.core.statistics import NOISY
from edgeship.toolkit.core.text import escaped
from edgeship.toolkit.core.typed_json import from_json
from edgeship.toolkit.report import formatting, gather, guard_summary, paired_analysis
from edgeship.toolkit.report.details import details
from edgeship.toolkit.report.verdict import STAMPS, files_to_ship, verdicts, warnings
from edgeship.toolkit.runs.variant_id import REFERENCE

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup
    from rich.console import Console

CLASSES_SHOWN = 100  # in report.md
FILE = ("file", "file to ship")  # of a verdict, of PASS
WIDE = 160  # columns of text in a file or pipe
VERDICTS = {
    "pass": ("✓", "green"),
    "fail": ("✗", "red"),
    "no_gain": ("✗", "red"),
    "not_measured": ("○", "cyan"),
}
DOUBTFUL = ("!", "yellow")  # every other verdict
GATES = {  # outcome -> mark, word, colour
    "pass": ("✓", "passed", "green"),
    "fail": ("✗", "MISSED", "red"),
    "needs_data": ("!", "undecided", "yellow"),
    "not_measured": ("✗", "NOT MEASURED", "red"),
    "not_judged": ("○", "not judged", "cyan"),
}
JUDGED_BY = {
    "interval": "Gates use the 95 % interval: passed if all of it is within the limit, MISSED if none is, "
    "else undecided.",
    "point": 'Gates use the value alone (`report.judge_by = "point"`), not its interval.',
}
FOLDS, FOLDED = ("run", "remarks"), 12  # columns with wrapped text, and their minimum width
CHECKS = {  # effect of an input check -> mark and colour
    "no_verdict": ("no verdict", "red"),
    "no_pass": ("no pass", "yellow"),
    "note": ("note  ", "yellow"),
}
Thumbnails = Callable[[int], bytes]


def write(
    report: RunReport, out: Path, *, thumbnails: Thumbnails | None = None, evaluated: Path | None = None
) -> None:
    """Write report.json, report.md, report.html and junit.xml into a folder.

    Args:
        report: Result of `gather`.
        out: The folder; created if absent.
        thumbnails: Function from the index of an evaluation image to its encoded file; None: no pictures.
        evaluated: Folder of the evaluate stage, whose predictions are stored with the report.
    """
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report))
    write_text(out / "report.html", html(report, thumbnails=thumbnails))
    write_text(out / "junit.xml", junit(report))
    if evaluated is not None:
        paired_analysis.store_predictions(evaluated, out)


def find(run: Path) -> Path:
    """Return the path of a run's report.json: the file itself, or the one in the run's folder.

    Raises:
        DataError: There is no such file.
    """
    for path in (run / "report.json", run / "report" / "report.json") if run.is_dir() else (run,):
        if path.is_file() and path.suffix == ".json":
            return path
    place = f"{run} is a file, not" if run.is_file() else f"no report.json in {run}, expected"
    raise DataError(f"{place} the folder of a run", hint="name a folder written by `edgeship run --out`")


def load(run: Path) -> RunReport:
    """Read the report of a run's folder.

    Raises:
        DataError: The report is absent, truncated, or of another schema version.
    """
    path = find(run)
    content = read_json(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != gather.SCHEMA:
        raise DataError(
            f"{path} has schema {schema}, expected schema {gather.SCHEMA}",
            hint="read it with the edgeship version that wrote it, or run the recipe again with this one",
        )
    try:
        return from_json(escaped(content), RunReport, str(path))
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply", hint="run the recipe again") from error


def markdown(report: RunReport) -> str:
    """Render the report as Markdown for a pull request."""
    text: str = templates().get_template("report.md.j2").render(_context(report))
    return text


def html(report: RunReport, *, thumbnails: Thumbnails | None = None) -> str:
    """Render the report as one HTML page that loads no other file."""
    from edgeship.toolkit.report.html import page

    return page(report, templates(), _context(report), thumbnails)


def text_json(report: RunReport) -> str:
    """Render the report as JSON."""
    return json.dumps(plain(report), indent=1, allow_nan=False) + "\n"


def junit(report: RunReport) -> str:
    """Render the gates as JUnit XML: missed is a failure, undecided and not judged are skipped."""
    text: str = templates().get_template("junit.xml.j2").render(_context(report))
    return text


def terminal(report: RunReport, out: Path | None = None) -> None:
    """Print the table of variants, gates and notes to stdout, and last the verdict on each target.

    Args:
        report: The report.
        out: Folder of the run; None: files are named relative to it.
    """
    from rich.text import Text

    print_table(
        (
            "variant",
            "top-1",
            "drop, pp [95 %]",
            "agree",
            "p50",
            "speed-up",
            "INT8 layers",
            "size",
            "MACs",
            "accuracy",
        ),
        [
            (
                v.name,
                formatting.percent(v.top1),
                formatting.points(v.drop_pp, v.drop_ci95_pp).replace(" pp", ""),
                formatting.percent(v.agreement),
                formatting.milliseconds(v.latency_ms.p50 if v.latency_ms else None),
                formatting.times(v.speedup),
                formatting.coverage(v),
                formatting.shipped(v),
                formatting.count(v.macs),
                formatting.accuracy(v),
            )
            for v in report.variants
        ],
        expendable=("MACs", "size", "INT8 layers", "agree", "top-1", "speed-up"),
    )
    console = _console()
    for kind, where in formatting.sources(report.variants):
        console.print(Text(f"accuracy {kind}: {where}", style="dim"))
    for where in formatting.latency_sources(report.variants):
        console.print(Text(f"latency: {where}", style="dim"))
    if any(formatting.ships_graph(v) for v in report.variants):
        console.print(Text(f"graph: {formatting.GRAPH}", style="dim"))
    if baselines := formatting.speedup_baselines(report.variants):
        console.print(Text(f"speed-up: {baselines}", style="dim"))
    for v in report.variants:
        if v.guard is not None:
            console.print(Text(f"guard of {v.name}: {guard_summary.sentence(v.guard)}", style="dim"))
    console.print()
    if report.gates:
        console.print(Text(_judged_by(report), style="dim"))
    for gate in report.gates:
        mark, word, style = GATES[gate.outcome]
        console.print(
            Text(f"{mark} {word}", style=style),
            Text(f"{gate.name} {gate.variant or 'of the run'}: {gate.reason}"),
        )
    for check in report.input_checks:
        mark, style = CHECKS[check.effect]
        hint = f" ({check.hint})" if check.hint else ""
        console.print(Text(mark, style=style), Text(f"{check.message}{hint}"))
    for warning in warnings(report):
        console.print(Text("note  ", style="yellow"), Text(warning))
    console.print()
    files = files_to_ship(report)
    for verdict in report.verdicts or verdicts(report):
        mark, style = VERDICTS.get(verdict.level, DOUBTFUL)
        console.print(Text(f"{mark} {STAMPS[verdict.level]}", style=style), Text(verdict.sentence))
        if verdict.target in files:
            label = FILE[verdict.level == "pass"]
            console.print(Text(f"  {label}: {(out or Path()) / files[verdict.target]}"), soft_wrap=True)
        if verdict.level == "no_verdict":
            console.print(*(Text(f"  {step}", style="dim") for step in verdict.steps))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, expendable: Sequence[str] = ()
) -> None:
    """Print a table to stdout: names left, figures right, a dash for an absent figure.

    Args:
        columns: Headings.
        rows: Cells as text, one per column.
        expendable: Columns to drop if the terminal is too narrow, in this order; a line lists them.
    """
    from rich import box
    from rich.table import Table

    console = _console()
    cells = [["–" if cell in (formatting.NONE, formatting.UNKNOWN) else cell for cell in row] for row in rows]
    dropped: list[str] = []
    whole = (columns, cells)
    for column in expendable:
        if _width(columns, cells) <= console.width:
            break
        place = list(columns).index(column)
        columns = [*columns[:place], *columns[place + 1 :]]
        cells = [[*row[:place], *row[place + 1 :]] for row in cells]
        dropped.append(column)
    if _width(columns, cells) > console.width:
        _print_blocks(console, *whole)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        wordy = column in ("run", "variant", "remarks", "accuracy", "speed")
        folds = column in FOLDS
        table.add_column(
            column,
            justify="left" if wordy else "right",
            no_wrap=not folds,
            overflow="fold",  # a truncated figure would be wrong
        )
    for row in cells:
        table.add_row(*row)
    console.print(table)
    if dropped:
        console.print(f"columns not shown at this width: {', '.join(dropped)}", style="dim")


def _print_blocks(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print each row as lines of heading and cell, for a terminal narrower than a table."""
    for name, *cells in rows:
        console.print(f"\n{name}", style="bold")
        for heading, cell in zip(columns[1:], cells, strict=True):
            if cell:
                console.print(f"  {heading}: {cell}")


def _width(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Return the width of a table in characters: cells, two spaces between them, one at either end."""
    from rich.cells import cell_len

    widest = [max(cell_len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    taken = [
        min(width, FOLDED) if name in FOLDS else width for name, width in zip(columns, widest, strict=True)
    ]
    return sum(taken) + 2 * (len(taken) - 1) + 2


def _judged_by(report: RunReport) -> str:
    return JUDGED_BY[report.gates[0].judged_by] if report.gates else ""


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _context(report: RunReport) -> dict[str, object]:
    return {
        "report": report,
        "details": details(report),
        "words": formatting,
        "verdicts": report.verdicts or verdicts(report),  # older reports have none
        "stamps": STAMPS,
        "files": files_to_ship(report),
        "file_label": FILE,
        "gate_marks": GATES,
        "judged_by": _judged_by(report),
        "warnings": warnings(report),
        "reference": REFERENCE.name,
        "classes_shown": CLASSES_SHOWN,
        "gate_names": list(dict.fromkeys(gate.name for gate in report.gates)),
        "preprocess": plain(report.model.preprocess) or {},
        "titles": {v.name: formatting.title(v) for v in report.variants},
        "noisy": NOISY,
        "sources": formatting.sources(report.variants),
        "ships_graph": any(formatting.ships_graph(v) for v in report.variants),
        "latency_sources": formatting.latency_sources(report.variants),
        "guards": guard_summary,
        "guarded": [v for v in report.variants if v.guard is not None],
        "has_inside": any(report.details.get(key) for key in ("sensitivity", "quantize")),
    }


@functools.cache  # compiling the templates takes longer than rendering them
def templates() -> jinja2.Environment:
    """Return the Jinja environment of this package's templates, with escaping on."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeship.toolkit.report", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2", "xml.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: (
        str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    )
    environment.filters["prose"] = _prose
    environment.filters["accuracy"] = formatting.accuracy
    return environment


def _prose(text: str) -> Markup:
    """Convert a sentence with commands in backticks to HTML."""
    from markupsafe import Markup

    parts = re.split("`([^`]+)`", text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if place % 2 else part for place, part in enumerate(parts))
