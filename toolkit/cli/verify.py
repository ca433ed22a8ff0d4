"""`edgeship verify`: recompute what a run or a bundle states."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, Command

if TYPE_CHECKING:
    from edgeship.toolkit.api.verify import Result

WORDS: dict[Result, str] = {
    "exact": "agrees exactly",
    "interval": "within the interval",
    "differs": "DIFFERS",
    "unchecked": "cannot be checked",
}


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship verify runs/r18
  edgeship verify runs/r18 --data photos/
  edgeship verify runs/r18 --data photos/ --model resnet18.pth --rebuild
  edgeship verify runs/r18/bundle.tar --json
""",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--data",
    metavar="PATH",
    type=click.Path(exists=True),
    help="Images of the run: its --data or --eval-data.  [default: where the recipe names them]",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Run the stages again in a temporary store, and compare the ONNX files byte by byte.",
)
@click.option(
    "--model",
    metavar="PATH",
    type=click.Path(exists=True),
    help="Model of the run, for --rebuild.  [default: where the recipe names it]",
)
@JSON
def command(*, path: Path, data: str | None, rebuild: bool, model: str | None, as_json: bool) -> None:
    """Recompute digests, predictions and figures of a run or a bundle.

    PATH is a folder written by `edgeship run --out`, or a bundle; this may be another machine than that of
    the run. Every stated value agrees exactly, is within the 95 % interval of the stated one (another
    processor may round otherwise), differs, or cannot be checked here, with the reason. Latency and energy
    were measured once, on one machine, and are never recomputed.

    Exit code 3: something differs.
    """
    from edgeship.toolkit.api.verify import verify
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.core.errors import GateError
    from edgeship.toolkit.core.text import printable

    with show_progress():
        checks = verify(path, data, model=model, rebuild=rebuild)
    counts = Counter(each.result for each in checks)
    if as_json:
        click.echo(json.dumps({"counts": plain(counts), "checks": plain(checks)}, indent=1))
    else:
        for each in checks:
            values = _text(each.stated)
            if each.recomputed is not None and each.recomputed != each.stated:
                values = f"{values} stated, {_text(each.recomputed)} here"
            line = f"{WORDS[each.result]:<19}  {each.subject} {each.figure} {values}".rstrip()
            click.echo(printable(f"{line} ({each.why})" if each.why else line))
        click.echo(", ".join(f"{counts[result]} {words.lower()}" for result, words in WORDS.items()))
    if counts["differs"]:
        first = next(each for each in checks if each.result == "differs")
        raise GateError(
            f"{counts['differs']} of {len(checks)} values differ, first {first.subject} {first.figure}",
            hint="use what agrees; if the images or the model are others, name those of the run",
        )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value[:12] if isinstance(value, str) else "" if value is None else str(value)
