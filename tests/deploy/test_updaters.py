"""Updates for RAUC, SWUpdate and Mender: their files, and what the real tools do with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import need, stub_python

from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.deploy import updaters
from edgeship.toolkit.deploy.manifest import Terms
from edgeship.toolkit.deploy.updaters import Settings, installer
from edgeship.toolkit.deploy.updaters.formats import mender, swupdate

PAYLOAD = [updaters.BUNDLE, installer.FILE, updaters.RUN]


def output(command, **more):
    """Run a command that must succeed; return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """Return key and certificate, for e-mail, as RAUC and SWUpdate expect by default."""
    need(shutil.which("openssl"), "openssl")
    folder = tmp_path_factory.mktemp("signer")
    key, cert = folder / "key.pem", folder / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    output([*request, "-keyout", key, "-out", cert, "-addext", "extendedKeyUsage=emailProtection"])
    return {"key": key, "cert": cert}


@pytest.fixture
def settings(tmp_path):
    return {"compatible": ("box",), "target": "openvino", "root": str(tmp_path / "root"), "python": "/py"}


def parse_cpio(data):
    """Return names and contents of a cpio archive of the "new crc" form, whose checksums are checked."""
    found, place = [], 0
    while True:
        assert data[place : place + 6] == b"070702"
        fields = [int(data[place + 6 + 8 * each : place + 14 + 8 * each], 16) for each in range(13)]
        size, length, total = fields[6], fields[11], fields[12]
        name = data[place + 110 : place + 110 + length - 1].decode()
        start = -(-(place + 110 + length) // 4) * 4
        if name == "TRAILER!!!":
            assert len(data) % 512 == 0 and not data[start:].strip(b"\0")
            return found
        content = data[start : start + size]
        assert total == sum(content) & 0xFFFFFFFF and fields[1] == 0o100644
        found.append((name, content))
        place = -(-(start + size) // 4) * 4


def test_a_swupdate_image_begins_with_its_description(tmp_path, bundle, settings, signer):
    packed = bundle(terms=Terms(7))
    out = tmp_path / "u.swu"
    assert updaters.write("swupdate", packed, out, Settings(**settings, **signer)) == {}
    members = parse_cpio(out.read_bytes())
    scripts = [swupdate.INSTALL, swupdate.ROLLBACK]
    assert [name for name, _ in members] == [swupdate.DESCRIPTION, swupdate.SIGNATURE, *PAYLOAD, *scripts]
    contents = dict(members)
    assert contents["bundle.tar"] == packed.path.read_bytes()
    text = contents[swupdate.DESCRIPTION].decode()
    assert 'version = "7";' in text and 'hardware-compatibility: [ "box" ];' in text and packed.id in text
    digests = re.findall(r'filename = "(\S+)";.*?sha256 = "(\w+)"', text, re.DOTALL)
    assert dict(digests) == {
        name: hashlib.sha256(contents[name]).hexdigest() for name in (*PAYLOAD, *scripts)
    }
    place = f"{settings['root']}/update"
    assert re.findall(r'path = "(.*?)"', text) == [f"{place}/{name}" for name in PAYLOAD]
    assert f'install "{place}/bundle.tar"' in contents[swupdate.INSTALL].decode()
    for name in (swupdate.DESCRIPTION, swupdate.SIGNATURE):
        (tmp_path / name).write_bytes(contents[name])
    verify = [
        "openssl",
        "cms",
        "-verify",
        "-binary",
        "-CAfile",
        signer["cert"],
        "-out",
        tmp_path / "verified",
    ]
    signed = ["-content", tmp_path / swupdate.DESCRIPTION, "-in", tmp_path / swupdate.SIGNATURE]
    output([*verify, *signed, "-inform", "DER", "-binary"])
    assert (tmp_path / "verified").read_bytes() == contents[swupdate.DESCRIPTION]


def test_an_unsigned_swupdate_image_is_the_same_every_time(tmp_path, bundle, settings):
    packed = bundle()
    given = Settings(**{**settings, "compatible": ("1.0", 'a"\\b')})
    for name in "ab":
        updaters.write("swupdate", packed, tmp_path / name, given)
    written = (tmp_path / "a").read_bytes()
    assert written == (tmp_path / "b").read_bytes() and swupdate.SIGNATURE not in dict(parse_cpio(written))
    text = dict(parse_cpio(written))[swupdate.DESCRIPTION].decode()
    assert updaters.BUNDLE in text
    updaters.write("swupdate", packed, tmp_path / "c", dataclasses.replace(given, withdraw=True))
    members = dict(parse_cpio((tmp_path / "c").read_bytes()))
    assert (
        updaters.BUNDLE not in members and f"{packed.id}-withdrawn" in members[swupdate.DESCRIPTION].decode()
    )
    assert r'hardware-compatibility: [ "1.0", "a\"\\b" ];' in text
    if shutil.which("cpio"):
        listed = output(["cpio", "-it", "--quiet", "-F", str(tmp_path / "a")])
        assert listed.split()[:4] == [swupdate.DESCRIPTION, *PAYLOAD]


def test_a_rauc_bundle_has_a_handler(tmp_path, bundle, settings, signer):
    need(shutil.which("rauc") and shutil.which("mksquashfs"), "rauc and squashfs-tools")
    packed, out = bundle(), tmp_path / "u.raucb"
    for form in ("verity", "plain"):  # the second replaces the first
        assert updaters.write("rauc", packed, out, Settings(**settings, **signer, rauc_format=form)) == {}
        shown = output(["rauc", "info", "--keyring", signer["cert"], "--output-format=shell", out])
        assert "RAUC_MF_COMPATIBLE='box'" in shown and f"RAUC_MF_VERSION='{packed.id}'" in shown
        assert form in output(["rauc", "info", "--keyring", signer["cert"], out])
    output(["rauc", "extract", "--keyring", signer["cert"], out, tmp_path / "content"])
    content = tmp_path / "content"
    assert (content / "bundle.tar").read_bytes() == packed.path.read_bytes()
    assert "[handler]\nfilename=install.sh\n" in (content / "manifest.raucm").read_text()
    assert os.access(content / "install.sh", os.X_OK)
    assert "exec /py " in (content / "run.sh").read_text()


def test_a_mender_artifact_and_its_update_module(tmp_path, bundle, settings, signer):
    need(shutil.which("mender-artifact"), "mender-artifact")
    packed, out = bundle(), tmp_path / "u.mender"
    key = tmp_path / "key.pem"
    output(["openssl", "rsa", "-traditional", "-in", signer["key"], "-out", key])
    given = Settings(**{**settings, "compatible": ("box", "crate")}, key=key)
    further = updaters.write("mender", packed, out, given)
    ((module, place),) = further.items()
    assert module == tmp_path / "u.mender.module" and mender.PLACE in place
    shown = output(["mender-artifact", "read", out])
    assert f"Name: {packed.id}\n" in shown and "[box crate]" in shown and f"Type:   {mender.MODULE}" in shown
    assert re.findall(r"name: +(\S+)", shown) == PAYLOAD
    assert hashlib.sha256(packed.path.read_bytes()).hexdigest() in shown
    public = tmp_path / "public.pem"
    output(["openssl", "pkey", "-in", signer["key"], "-pubout", "-out", public])
    assert "validated successfully" in output(["mender-artifact", "validate", "-k", public, out])
    assert output(["sh", module, "SupportsRollback", tmp_path]) == "Yes\n"
    assert output(["sh", module, "NeedsArtifactReboot", tmp_path]) == "No\n"
    assert output(["sh", module, "ArtifactCommit", tmp_path]) == ""


@pytest.mark.parametrize(
    ("updater", "change", "named"),
    [
        ("rauc", {"compatible": ()}, "--compatible"),
        ("rauc", {"compatible": ("a", "b")}, "--compatible"),
        ("rauc", {"key": None, "cert": None}, "--update-key"),
        ("rauc", {"cert": None}, "--update-cert"),
        ("swupdate", {"compatible": ()}, "hwrevision"),
        ("swupdate", {"key": None}, "--update-key"),
        ("mender", {"compatible": ()}, "--compatible"),
        ("mender", {}, "leave out --update-cert"),
        ("swupdate", {"root": "~/edgeship"}, "--root"),
        ("swupdate", {"root": "/"}, "--root"),
        ("swupdate", {"root": "/srv/../etc"}, "--root"),
        ("swupdate", {"root": '/srv/$(x)"'}, "--root"),
        ("swupdate", {"python": "'"}, "--python"),
        ("swupdate", {"python": " "}, "--python"),
        ("swupdate", {"compatible": ("a\nb",)}, "--compatible"),
        ("swupdate", {"target": ""}, "--target"),
        ("swupdate", {"target": "openvin"}, "openvino"),
    ],
)
def test_settings_that_do_not_fit_are_wrong_usage(tmp_path, bundle, settings, signer, updater, change, named):
    with pytest.raises(RecipeError) as caught:
        updaters.write(updater, bundle(), tmp_path / "u", Settings(**{**settings, **signer, **change}))
    assert caught.value.exit_code == 2 and named in f"{caught.value} {caught.value.hint}"
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize(
    ("updater", "tool", "package"),
    [
        ("rauc", "rauc", "rauc"),
        ("mender", "mender-artifact", "mender-artifact"),
        ("swupdate", "openssl", "openssl"),
    ],
)
def test_a_tool_that_is_not_installed_is_named(
    tmp_path, bundle, settings, signer, monkeypatch, updater, tool, package
):
    monkeypatch.setenv("PATH", str(tmp_path))
    given = Settings(**settings, **({"key": signer["key"]} if updater == "mender" else signer))
    with pytest.raises(DataError, match=f"cannot run {tool}: ") as caught:
        updaters.write(updater, bundle(), tmp_path / "u", given)
    assert caught.value.hint == f"`apt install {package}`" and caught.value.exit_code == 1


def test_a_tool_that_fails_leaves_no_file(tmp_path, bundle, settings, signer):
    need(shutil.which("rauc") and shutil.which("mksquashfs"), "rauc and squashfs-tools")
    wrong = {**signer, "key": signer["cert"]}
    with pytest.raises(DataError, match=r"rauc failed: ."):
        updaters.write("rauc", bundle(), tmp_path / "out" / "u", Settings(**settings, **wrong))
    assert list((tmp_path / "out").iterdir()) == []


def call(*arguments):
    return CliRunner().invoke(app.app, ["bundle", *map(str, arguments)], obj={"debug": False})


def test_the_command_wraps_a_bundle(tmp_path, bundle):
    packed = bundle()
    given = ["--for", "swupdate", "--compatible", "1.0", "--target", "openvino"]
    given += ["--python", "docker exec x python3"]
    done = call(packed.path, *given)
    out = packed.path.with_suffix(".swu")
    assert done.exit_code == 0 and done.output == f"{out}: {packed.id}, onnxruntime-int8, openvino-int8\n"
    contents = dict(parse_cpio(out.read_bytes()))
    assert contents["bundle.tar"] == packed.path.read_bytes()
    assert "/var/lib/edgeship/update" in contents[swupdate.INSTALL].decode()
    assert "exec python3 " in contents["run.sh"].decode()  # the agent alone runs in the container
    before = packed.path.read_bytes()
    done = call(packed.path, *given, "--out", packed.path)
    assert done.exit_code != 0 and packed.path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{bundle}"], "add --for"),
        (["{bundle}", "--for", "swupdate", "--compatible", "a", "--golden", "3"], "--golden"),
        (["{bundle}", "--for", "swupdate", "--compatible", "a", "--jetpack", "6.2"], "--jetpack"),
        (["{folder}", "--compatible", "a"], "--compatible is for updates"),
        (["{folder}", "--update-key", "{bundle}"], "--update-key is for updates"),
        (["{folder}", "--rauc-format", "plain"], "--rauc-format is for updates"),
        (["{folder}", "--for", "apt"], "mender"),
        (
            ["{bundle}", "--for", "swupdate", "--compatible", "a", "--openssf-key", "{bundle}"],
            "--openssf-key",
        ),
    ],
)
def test_options_of_another_kind_are_wrong_usage(tmp_path, bundle, arguments, named):
    places = {"bundle": bundle().path, "folder": tmp_path}
    done = call(*(each.format(**places) for each in arguments))
    assert done.exit_code == 2 and named in done.output


class Machine:
    """This machine as a device of an updater; all is in a folder."""

    needed: tuple[str, ...]
    signed: tuple[str, ...] = ("key", "cert")

    def __init__(self, folder, signer, stack):
        self.folder, self.signer, self.stack = folder, signer, stack
        need(os.geteuid() == 0, "root's rights, for an updater")
        for program in self.needed:
            need(shutil.which(program), program)
        self.start()

    @property
    def live(self):
        """The bundle whose release is live."""
        link = self.folder / "root" / "current"
        return link.resolve().name.rpartition(".")[0] if link.is_symlink() else None

    def run(self, *command, **more):
        """Run a command; return True if it succeeds, and its output."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)
        return done.returncode == 0, done.stdout + done.stderr

    def start(self):
        """Start what the updater needs."""

    def commit(self):
        """Make the last update final."""

    def back(self, update):
        """Go back from an update by the updater's own means; None: it has none."""

    def failure(self, printed):
        """Return the log with the cause of a failed installation."""
        return printed


class Rauc(Machine):
    """RAUC's service on a bus of its own; a slot is booted, as RAUC insists."""

    needed = ("rauc", "mksquashfs", "dbus-daemon")
    config = """\
[system]
compatible=box
bootloader=noop
mountprefix={0}/mount
statusfile={0}/status
[keyring]
path={1}
[slot.rootfs.0]
device=/dev/null
type=raw
bootname=a
"""
    bus = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={0}/bus</listen><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""

    def start(self):
        need(Path("/dev/loop-control").exists(), "loop devices, for RAUC")
        (self.folder / "mount").mkdir()
        for name, text in (("system.conf", self.config), ("bus.conf", self.bus)):
            (self.folder / name).write_text(text.format(self.folder, self.signer["cert"]))
        self.environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.folder}/bus"}
        self.background("dbus-daemon", f"--config-file={self.folder}/bus.conf", "--nofork")
        self.wait(lambda: (self.folder / "bus").exists())
        self.rauc = ["rauc", f"--conf={self.folder}/system.conf"]
        self.background(*self.rauc, "--override-boot-slot=a", "service")
        self.wait(lambda: self.run(*self.rauc, "status", env=self.environment)[0])

    def wait(self, ready):
        give_up = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < give_up, self.failure("")
            time.sleep(0.1)

    def background(self, *command):
        log = self.stack.enter_context((self.folder / "log").open("ab"))
        process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)

    def install(self, file):
        return self.run(*self.rauc, "install", file, env=self.environment)

    def failure(self, printed):
        return (self.folder / "log").read_text()


class SWUpdate(Machine):
    """SWUpdate as a command."""

    needed = ("swupdate", "openssl")

    def install(self, file, *more):
        return self.run("swupdate", "-k", self.signer["cert"], "-H", "board:box", *more, "-i", file)

    def back(self, update):
        return self.install(update, "-e", "edgeship,rollback")


class Mender(Machine):
    """Mender's client, standalone, with folders of its own in place of the system's."""

    needed = ("mender", "mender-artifact", "unshare")
    signed = ()

    def start(self):
        for name in ("modules", "etc", "data"):
            (self.folder / name).mkdir()
        (self.folder / "etc" / "artifact_info").write_text("artifact_name=factory\n")
        (self.folder / "data" / "device_type").write_text("device_type=box\n")
        (self.folder / "etc" / "mender.conf").write_text(
            json.dumps({"DeviceTypeFile": f"{self.folder}/data/device_type"})
        )

    def mender(self, *command):
        client = ["mender", "--data", f"{self.folder}/data", "--no-syslog", *command]
        places = {"modules": Path(mender.PLACE).parent, "etc": "/etc/mender"}
        mounts = " && ".join(f"mount --bind {self.folder}/{name} {place}" for name, place in places.items())
        return self.run("unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *client)

    def install(self, file):
        module = self.folder / "modules" / mender.MODULE
        shutil.copyfile(f"{file}.module", module)
        module.chmod(0o755)
        return self.mender("install", file)

    def commit(self):
        assert self.mender("commit")[0]

    def back(self, update):
        return self.mender("rollback")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Rauc, SWUpdate, Mender])
def test_the_real_tool_installs_rolls_back_and_reports_a_missed_gate(tmp_path, bundle, signer, kind):
    folder = tmp_path / "device"
    folder.mkdir()
    with ExitStack() as stack:
        machine = kind(folder, signer, stack)
        python = stub_python(tmp_path / "python")
        given = {name: signer[name] for name in kind.signed} | {"rauc_format": "plain"}
        given |= {"root": str(folder / "root"), "python": str(python), "target": "openvino"}
        updates = {}

        def write(name, packed, **more):
            out = tmp_path / name
            updaters.write(kind.__name__.lower(), packed, out, Settings(("box",), **given, **more))
            updates[name] = (packed.id, out)

        def installs(name, live=None):
            done, printed = machine.install(updates[name][1])
            assert done, machine.failure(printed)
            assert machine.live == updates[live or name][0]

        first, second = bundle(), bundle(version=2)
        write("first", first)
        write("second", second)
        write("bad", bundle(version=3, selftest="negative"))
        write("withdrawal", second, withdraw=True)
        installs("first")
        machine.commit()
        installs("second")
        if went := machine.back(updates["second"][1]):
            assert went[0], machine.failure(went[1])
        else:
            installs("first")
        assert machine.live == first.id
        done, printed = machine.install(updates["bad"][1])
        assert not done and machine.live == first.id
        assert "lowest cosine 0.5 is below 0.99" in machine.failure(printed)
        installs("second")  # the way forward is open
        machine.commit()
        installs("withdrawal", live="first")  # and the way back, later
        machine.commit()
        if kind is Mender:
            done, printed = machine.mender("show-artifact")
            assert done and f"{second.id}-withdrawn" in printed
