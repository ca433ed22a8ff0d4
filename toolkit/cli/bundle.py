"""edgeship bundle: pack what devices get of a run."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._outputs import refuse_inputs


@click.command(
    epilog="\b\nExamples:\n  edgeship bundle runs/quickstart\n"
    "  edgeship bundle runs/main --variant tensorrt-int8-pruned --sign ~/.ssh/release --out main.tar"
)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: RUN/bundle.tar]")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Variant to ship, one a target.  [default: INT8, pruned if the run pruned]",
)
@click.option(
    "--golden", default=8, show_default=True, type=click.IntRange(1), help="Images of the self-test."
)
@click.option(
    "--images",
    default=500,
    show_default=True,
    type=click.IntRange(0),
    help="Images to measure accuracy with on the device.",
)
@click.option(
    "--max-gap-pp", type=float, help="Top-1 it may lose on the device against the simulation.  [default: 1]"
)
@click.option("--max-latency-ms", type=float, help="Median latency it may have on the device.")
@click.option("--sign", "key", type=click.Path(exists=True, path_type=Path), help="SSH key to sign with.")
def command(
    run: Path,
    *,
    out: Path | None,
    variants: tuple[str, ...],
    golden: int,
    images: int,
    max_gap_pp: float | None,
    max_latency_ms: float | None,
    key: Path | None,
) -> None:
    """Pack RUN, a folder written by `edgeship run --out`, into one file for devices.

    Equal runs give equal bytes. `edgeship deploy RUN` does this by itself.
    """
    from edgeship.toolkit.cli._progress import shown
    from edgeship.toolkit.deploy import bundle as bundles
    from edgeship.toolkit.deploy import bundle_from_run

    target = out or run / bundle_from_run.FILE
    refuse_inputs(target, *([key] if key is not None else ()))
    limits = {"max_gap_pp": max_gap_pp, "max_latency_ms": max_latency_ms}
    gates = {name: limit for name, limit in limits.items() if limit is not None}
    with shown():
        made = bundle_from_run.make(run, target, variants=variants, golden=golden, images=images, gates=gates)
    if key is not None:
        made = bundles.sign(made, key)
    shipped = ", ".join(about["variant"] for about in made.manifest["targets"].values())
    click.echo(f"{made.path}: {made.id}, {shipped}{', signed' if key else ''}")
