"""A real arm64 userland under emulation as a device: its own sshd in a chroot, ONNX Runtime's arm64 wheel.

Needs root, binfmt support for aarch64 and debootstrap (Debian packages qemu-user-static, binfmt-support and
debootstrap). The Debian root is built once, in $EDGESHIP_ARM64_ROOT or the user's cache folder, and each test
gets a copy-on-write view of it. `make test-arm64` runs this.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import qdq_graphs
from loopback import Park, Server, free_port, make_key, need, quiet
from runner import jetson_tree

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import release
from edgeship.toolkit.deploy.bundle import Contents, Graph
from edgeship.toolkit.deploy.bundle_from_run import choose_golden
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.release import DeployOptions

pytestmark = [pytest.mark.slow, pytest.mark.arm64, pytest.mark.timeout(1800)]

# As on every Linux; ONNX Runtime aborts without.
CPUS = {f"sys/devices/system/cpu/{name}": "0-5\n" for name in ("possible", "present")}
PACKAGES = "python3,python3-numpy,openssh-server,openssh-client"
WHEEL = "onnxruntime==1.23.2"  # of Debian bookworm's Python 3.11
PATIENT = DeployOptions(wait_s=0.0, limit_s=900.0, timing_s=0.5)  # emulation is slow
BINFMT = Path("/proc/sys/fs/binfmt_misc")


@pytest.fixture(scope="session")
def debian() -> Path:
    """An arm64 Debian with Python, NumPy, sshd and ONNX Runtime."""
    need(os.getuid() == 0, "root, for a chroot")
    need(shutil.which("debootstrap"), "debootstrap")
    if not (BINFMT / "status").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", str(BINFMT)], check=False)
    if not (BINFMT / "qemu-aarch64").exists() and shutil.which("update-binfmts"):
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False)
    need((BINFMT / "qemu-aarch64").exists(), "qemu-user-static and binfmt-support")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeship"
    root = Path(os.environ.get("EDGESHIP_ARM64_ROOT") or cache / "arm64-bookworm")
    if not root.exists():
        making = root.with_name(f"{root.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        options = ["--arch=arm64", "--variant=minbase", f"--include={PACKAGES}"]
        subprocess.run(
            ["debootstrap", *options, "bookworm", str(making)], check=True, stdout=subprocess.DEVNULL
        )
        wheel = [
            "--platform",
            "manylinux_2_28_aarch64",
            "--platform",
            "manylinux_2_27_aarch64",
            "--python-version",
            "3.11",
        ]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [*pip, *wheel, "--target", str(making / "usr/local/lib/python3.11/dist-packages"), WHEEL],
            check=True,
        )
        making.rename(root)
    return root


@dataclasses.dataclass
class Emulated(Server):
    """An sshd of the arm64 root, in a chroot."""

    chroot: Path = Path()

    def command(self) -> list[str]:
        return ["chroot", str(self.chroot), "/usr/sbin/sshd", "-D", "-e", "-f", "/srv/sshd_config"]


@pytest.fixture
def board(debian: Path, park: Park, tmp_path: Path) -> Iterator[Callable[..., tuple[Emulated, Device]]]:
    """Starts emulated devices; with `files` laid into their root, which then has no real /proc and /sys."""
    mounted: list[Path] = []

    def mount(*arguments: str, at: Path) -> None:
        subprocess.run(["mount", *arguments, str(at)], check=True)
        mounted.append(at)

    def start(name: str, files: dict[str, str] | None = None, **fields: object) -> tuple[Emulated, Device]:
        folder = tmp_path / name
        for part in ("upper", "work", "root"):
            (folder / part).mkdir(parents=True)
        root = folder / "root"
        layers = f"lowerdir={debian},upperdir={folder}/upper,workdir={folder}/work"
        mount("-t", "overlay", "-o", layers, "overlay", at=root)
        mount("--bind", "/dev", at=root / "dev")
        if files is None:
            mount("-t", "proc", "proc", at=root / "proc")
            mount("--bind", "/sys", at=root / "sys")
        else:
            jetson_tree.lay(root, files)
        (root / "run/sshd").mkdir(exist_ok=True)
        port = free_port()
        make_key(root / "srv/host_key")
        shutil.copy(park.client_key.with_suffix(".pub"), root / "srv/authorized_keys")
        (root / "srv/sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey /srv/host_key\nPidFile none\nUsePAM no\n"
            "AuthorizedKeysFile /srv/authorized_keys\nStrictModes no\nPermitRootLogin prohibit-password\n"
        )
        with (park.folder / "known_hosts").open("a") as known_hosts:
            known_hosts.write(f"[127.0.0.1]:{port} {(root / 'srv/host_key.pub').read_text()}")
        server = Emulated(folder, port, root / "srv/sshd_config", chroot=root)
        server.start()
        park.servers.append(server)
        options = {"target": "onnxruntime", "python": "python3", "root": "/data/edgeship", **fields}
        return server, park.entry(server, name, **options)

    yield start
    for server in park.servers:
        server.stop()
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(tmp_path: Path, seed: int) -> Contents:
    """Return a small residual network in INT8, and its ONNX Runtime logits on this machine."""
    import onnxruntime

    graph = qdq_graphs.save(qdq_graphs.residual_net(qdq_graphs.TENSORRT), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = qdq_graphs.images(32)
    logits = np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])
    clear = choose_golden([logits], 4)
    shipped = Graph("onnxruntime-int8", "onnxruntime", "int8", graph, logits[clear])
    return Contents("residual", [shipped], images[clear], provenance={"seed": seed})


def test_deployed_proved_upgraded_and_rolled_back_on_arm64(board, tmp_path):
    server, entry = board("board")
    probed = release.facts(entry)
    assert probed["facts"]["arch"] == "aarch64" and probed["facts"]["jetson"] is None
    first = release.deploy(entry, bundles.make(contents(tmp_path, 1), tmp_path / "1.tar"), PATIENT, quiet)
    record = first.record
    assert first.state == "live" and record["fake"] is False and record["facts"]["arch"] == "aarch64"
    assert record["build"]["backend"] == "onnxruntime" and record["selftest"]["cosine_min"] > 0.99
    link = server.chroot / "data/edgeship/current"
    assert str(link.readlink()) == f"releases/{first.release}"
    second = release.deploy(entry, bundles.make(contents(tmp_path, 2), tmp_path / "2.tar"), PATIENT, quiet)
    assert second.state == "live" and str(link.readlink()) == f"releases/{second.release}"
    assert second.record["build"]["reused"]
    assert (
        release.deploy(entry, bundles.make(contents(tmp_path, 2), tmp_path / "2.tar"), PATIENT, quiet).state
        == "unchanged"
    )
    back = release.rollback(entry, None, PATIENT, quiet)
    assert back.release == first.release and str(link.readlink()) == f"releases/{first.release}"


def test_a_fake_jetson_without_tensorrt_is_told_what_it_lacks(board, tmp_path):
    _, entry = board("fake-jetson", files={**jetson_tree.ORIN_NANO, **CPUS}, target="tensorrt")
    probed = release.facts(entry)
    assert probed["facts"]["jetson"]["module"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert probed["facts"]["jetson"]["jetpack"] == "6.2" and probed["facts"]["arch"] == "aarch64"
    assert not probed["backends"]["tensorrt"]["available"]
    plain = contents(tmp_path, 1)
    moved = dataclasses.replace(plain, graphs=[dataclasses.replace(plain.graphs[0], target="tensorrt")])
    with pytest.raises(DeviceError, match="fake-jetson cannot run tensorrt") as caught:
        release.deploy(entry, bundles.make(moved, tmp_path / "b.tar"), PATIENT, quiet)
    assert "tensorrt" in caught.value.hint.lower() or "nvidia-jetpack" in caught.value.hint
    assert release.status(entry)["releases"] == {}
