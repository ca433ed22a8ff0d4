"""`edgeship bundle`: pack a run into one file for deployment."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import Command, Number, recipe_options
from edgeship.toolkit.cli._outputs import OutPath, refuse_inputs
from edgeship.toolkit.cli._updates import given, update_options

if TYPE_CHECKING:
    from edgeship.toolkit.deploy.updaters import Settings

_PACKING = (
    "variants", "golden", "images", "max_gap_pp", "max_latency_ms", "release_version", "expires",
    "compile_jetpack", "compile_tensorrt",
)  # fmt: skip


@click.command(
    cls=Command,
    former={"--images": "--eval-images"},
    epilog="\b\nExamples:\n  edgeship bundle runs/quickstart\n"
    "  edgeship bundle runs/main --variant tensorrt-int8-pruned\n"
    "  edgeship bundle runs/main --sign ~/.ssh/release --version 4 --out main.tar\n"
    "  edgeship bundle main.tar --for mender --compatible jetson-orin-nano",
)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=OutPath(dir_okay=False),
    help="File to write.  [default: RUN/bundle.tar; with --for .raucb, .swu or .mender]",
)
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
@update_options
def command(
    run: Path,
    *,
    updater: str | None,
    settings: Settings,
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
    `edgeship deploy RUN` packs a bundle by itself; this command is for signing, for other limits, and with
    --for for devices that RAUC, SWUpdate or Mender updates: RUN may then be a bundle as well.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.deploy import bundle as bundles
    from edgeship.toolkit.deploy import bundle_from_run, updaters
    from edgeship.toolkit.deploy.manifest import Day, Terms
    from edgeship.toolkit.pipeline.recipe import Recipe

    if expires is not None and expires.date() <= datetime.now(timezone.utc).date():
        raise click.BadParameter(
            f"{expires:%Y-%m-%d} has come: devices would refuse the bundle", param_hint="'--expires'"
        )
    if run.is_file():
        _refuse_packing(run, updater)
    if updater is not None and openssf_key is not None:
        raise click.UsageError("--openssf-key signs the file of a bundle, and --for writes another file")
    target = out or run / bundle_from_run.FILE
    if updater is not None:
        updaters.check(updater, settings)
        target = out or (run if run.is_file() else target).with_suffix(updaters.suffix(updater))
    keys = (key, openssf_key, settings.key, settings.cert, run if run.is_file() else None)
    refuse_inputs(target, *(each for each in keys if each is not None))
    signer = None if openssf_key is None else bundles.openssf_signer(openssf_key)
    limits = {"max_gap_pp": max_gap_pp, "max_latency_ms": max_latency_ms}
    gates = {name: limit for name, limit in limits.items() if limit is not None}
    version = Recipe.build({}, options).compile.device_version()
    terms = Terms(release_version, Day(f"{expires:%Y-%m-%d}") if expires else None)
    with tempfile.TemporaryDirectory() as scratch:
        packed = target if updater is None else Path(scratch) / bundle_from_run.FILE
        if run.is_file():
            shutil.copyfile(run, packed)
            bundle = bundles.load(packed)
        else:
            with show_progress():
                bundle = bundle_from_run.make(
                    run,
                    packed,
                    variants=variants,
                    golden=golden,
                    images=images,
                    gates=gates,
                    version=version,
                    terms=terms,
                )
        if key is not None:
            bundle = bundles.sign(bundle, key)
        further = {} if updater is None else updaters.write(updater, bundle, target, settings)
    shipped = ", ".join(about["variant"] for about in bundle.manifest["targets"].values())
    click.echo(f"{target}: {bundle.id}, {shipped}{', signed' if key else ''}")
    if signer is not None:
        click.echo(f"{bundles.sign_openssf(bundle, signer)}: signature by OpenSSF model signing")
    for path, place in further.items():
        click.echo(f"{path}: {place}")


def _refuse_packing(bundle: Path, updater: str | None) -> None:
    """Raise if a bundle is not only to be wrapped."""
    if updater is None:
        raise click.UsageError(f"{bundle} is a file: name the folder of a run, or add --for")
    if flags := given(_PACKING):
        raise click.UsageError(f"{flags[0]} is for packing a run, and {bundle} is packed already")
