"""`edgeship bundle`: pack a run into one file for deployment."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import Command, Number, recipe_options
from edgeship.toolkit.cli._outputs import OutPath, refuse_inputs


@click.command(
    cls=Command,
    former={"--images": "--eval-images"},
    epilog="\b\nExamples:\n  edgeship bundle runs/quickstart\n"
    "  edgeship bundle runs/main --variant tensorrt-int8-pruned --sign ~/.ssh/release --out main.tar",
)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=OutPath(dir_okay=False), help="File to write.  [default: RUN/bundle.tar]")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Variant to pack; repeatable, one per target.  [default: INT8, else FP16, pruned if the run pruned]",
)
@click.option(
    "--golden",
    default=8,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Number of golden images, for the self-test on the device.",
)
@click.option(
    "--eval-images",
    "images",
    default=500,
    metavar="N",
    show_default=True,
    type=click.IntRange(0, 10**6),
    help="Number of images to measure accuracy with on the device; 0: none.",
)
@click.option(
    "--max-gap-pp",
    type=Number(0, 100),
    help="Limit of the top-1 loss on the device against the simulation, in percentage points.  [default: 1]",
)
@click.option(
    "--max-latency-ms",
    type=Number(0, 10**6, above=True),
    help="Limit of the median latency on the device, in ms.",
)
@recipe_options("compile.jetpack", "compile.tensorrt")
@click.option(
    "--version",
    "release_version",
    default=0,
    type=click.IntRange(0, 2**53),
    help="Version of the release: a device with trusted signers refuses lower ones from then on.",
)
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="First day on which a device with trusted signers refuses the bundle.  [default: never]",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(exists=True, path_type=Path),
    help="SSH private key to sign the bundle with; devices check it.",
)
@click.option(
    "--openssf-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private ECDSA key (PEM) for a signature by OpenSSF model signing, in FILE.sig.json.",
)
def command(
    run: Path,
    *,
    out: Path | None,
    variants: tuple[str, ...],
    golden: int,
    images: int,
    max_gap_pp: float | None,
    max_latency_ms: float | None,
    release_version: int,
    expires: datetime | None,
    key: Path | None,
    openssf_key: Path | None,
    options: dict[str, Any],
) -> None:
    """Pack a run into one file for deployment.

    RUN is a folder written by `edgeship run --out`. The bundle is deterministic: equal runs give equal bytes.
    `edgeship deploy RUN` packs a bundle by itself; this command is for signing and for other limits.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.deploy import bundle as bundles
    from edgeship.toolkit.deploy import bundle_from_run
    from edgeship.toolkit.deploy.manifest import Day, Terms
    from edgeship.toolkit.pipeline.recipe import Recipe

    if expires is not None and expires.date() <= datetime.now(timezone.utc).date():
        raise click.BadParameter(
            f"{expires:%Y-%m-%d} has come: devices would refuse the bundle", param_hint="'--expires'"
        )
    target = out or run / bundle_from_run.FILE
    refuse_inputs(target, *(each for each in (key, openssf_key) if each is not None))
    signer = None if openssf_key is None else bundles.openssf_signer(openssf_key)
    limits = {"max_gap_pp": max_gap_pp, "max_latency_ms": max_latency_ms}
    gates = {name: limit for name, limit in limits.items() if limit is not None}
    version = Recipe.build({}, options).compile.device_version()
    terms = Terms(release_version, Day(f"{expires:%Y-%m-%d}") if expires else None)
    with show_progress():
        bundle = bundle_from_run.make(
            run,
            target,
            variants=variants,
            golden=golden,
            images=images,
            gates=gates,
            version=version,
            terms=terms,
        )
    if key is not None:
        bundle = bundles.sign(bundle, key)
    shipped = ", ".join(about["variant"] for about in bundle.manifest["targets"].values())
    click.echo(f"{bundle.path}: {bundle.id}, {shipped}{', signed' if key else ''}")
    if signer is not None:
        click.echo(f"{bundles.sign_openssf(bundle, signer)}: signature by OpenSSF model signing")
