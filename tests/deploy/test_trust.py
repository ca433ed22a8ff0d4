"""The attacks of The Update Framework (TUF, section 1.5.2) on a device with trusted signers."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import shutil
import time

import pytest
from loopback import QUICK, make_key, need, quiet, stub_python

from edgeship.toolkit.core.errors import DataError, DeviceError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import layout, release
from edgeship.toolkit.deploy.agent_client import RefusedError, connect
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.manifest import Terms

PAST, FUTURE = "2020-01-01", "2999-12-31"


@pytest.fixture
def keys(tmp_path):
    need(shutil.which("ssh-keygen"), "openssh-client")
    made = {name: tmp_path / name for name in ("ours", "next")}
    for path in made.values():
        make_key(path)
    return made


@pytest.fixture
def signers(keys):
    return {name: f"{name} {path.with_suffix('.pub').read_text()}" for name, path in keys.items()}


@pytest.fixture
def entry(tmp_path, signers):
    """A device that trusts our key."""
    python = stub_python(tmp_path / "python")
    device = Device("d", "local", "openvino", root=str(tmp_path / "root"), python=shlex.quote(str(python)))
    release.trust(device, signers["ours"], QUICK)
    return device


@pytest.fixture
def make(bundle, keys):
    """Return a function that makes a signed bundle of a release version."""

    def signed(number, expires=None, key="ours", **more):
        terms = Terms(number, expires)
        return bundles.sign(bundle(version=number + 1, terms=terms, **more), keys[key])

    return signed


def deploy(entry, bundle):
    return release.deploy(entry, bundle, QUICK, quiet).release


def refused(entry, bundle, words):
    before = release.status(entry)["current"]
    with pytest.raises(RefusedError, match=words) as caught:
        deploy(entry, bundle)
    assert release.status(entry)["current"] == before and caught.value.hint
    return caught.value


def test_rollback_attack_and_the_operators_way_back(entry, make):
    old, new = make(1), make(5)
    first = deploy(entry, old)
    second = deploy(entry, new)
    assert release.status(entry)["policy"] == {"floor": 5, "model": None}
    error = refused(entry, old, "has version 1, this device takes 5 and later")  # it is still installed
    assert error.code == "policy" and "edgeship rollback" in error.hint
    refused(entry, make(4), "has version 4")  # it never was
    back = release.rollback(entry, None, QUICK, quiet)
    assert back.release == first == release.status(entry)["current"]
    assert [entry["why"] for entry in release.status(entry)["history"]] == ["deploy", "deploy", "rollback"]
    refused(entry, make(4), "takes 5 and later")  # the floor stays
    assert deploy(entry, new) == second and deploy(entry, make(5, threads=1)) and deploy(entry, make(6))


def test_the_floor_of_the_owner_never_falls(entry, make, signers):
    release.trust(entry, signers["ours"], QUICK, floor=3)
    refused(entry, make(2), "takes 3 and later")
    release.trust(entry, signers["ours"], QUICK, floor=1)
    refused(entry, make(2), "takes 3 and later")
    assert deploy(entry, make(3))


def test_bundles_without_a_version_are_of_version_zero(entry, bundle, keys, make):
    unversioned = bundles.sign(bundle(version=9), keys["ours"])
    assert "release" not in unversioned.manifest
    assert deploy(entry, unversioned) and deploy(entry, make(1))
    refused(entry, unversioned, "has version 0")


def test_a_release_that_fails_raises_no_floor(entry, make):
    deploy(entry, make(1))
    refused(dataclasses.replace(entry, health="exit 1"), make(7), "health check failed")
    assert release.status(entry)["policy"]["floor"] == 1 and deploy(entry, make(2))


def test_freeze_attack(entry, make):
    refused(entry, make(1, PAST), f"expired on {PAST}")
    assert deploy(entry, make(1, FUTURE))


def test_freeze_attack_on_a_clock_that_is_behind(entry, make, tmp_path):
    deploy(entry, make(1))
    state = tmp_path / "root/state.json"
    known = json.loads(state.read_text())
    known["history"][-1]["at"] = "2500-06-01T00:00:00Z"  # the device was used then
    state.write_text(json.dumps(known))
    refused(entry, make(2, "2500-01-01"), "expired on 2500-01-01")
    assert deploy(entry, make(2, "2501-01-01"))


def test_mix_and_match(entry, make, keys):
    one, two = make(1), make(2, size=8192)
    for forged in (
        dataclasses.replace(one, manifest_file=two.manifest_file, manifest=two.manifest),
        dataclasses.replace(two, signature_file=one.signature_file),
        dataclasses.replace(one, files=two.files),
    ):
        with pytest.raises((DeviceError, DataError, KeyError)):
            deploy(entry, forged)
    with connect(entry) as session:  # an agent that gets the files of one under the name of the other
        session.call("lock", wait_s=0.0, who="test")
        with pytest.raises(RefusedError, match="another manifest"):
            session.call(
                "stage",
                release=f"{one.id}.00000000",
                manifest=_upload(session, two),
                signature=None,
                paths=[],
            )
    assert release.status(entry)["current"] is None


def _upload(session, bundle):
    raw = bundle.read(layout.MANIFEST)
    digest = bundle.manifest_file.sha256
    session.upload(digest, len(raw), 0, io.BytesIO(raw), lambda _: None)
    return digest


def test_wrong_target(entry, make, signers):
    release.trust(entry, signers["ours"], QUICK, model="scripted")
    refused(entry, make(1, name="other"), "of the model other, this device takes scripted")
    assert deploy(entry, make(1))
    release.trust(entry, signers["ours"], QUICK)  # it stays
    refused(entry, make(2, name="other"), "takes scripted")


def test_a_compromised_key_is_replaced(entry, make, signers):
    old = make(1)
    first = deploy(entry, old)
    release.trust(entry, signers["ours"] + signers["next"], QUICK)
    second = deploy(entry, make(2, key="next"))
    release.trust(entry, signers["next"], QUICK)
    refused(entry, make(3), "not from a signer this device trusts")
    refused(entry, old, "not from a signer this device trusts")  # although it is installed
    assert release.status(entry)["current"] == second
    assert release.rollback(entry, first, QUICK, quiet).release == first  # the operator's decision
    assert deploy(entry, make(3, key="next"))


def test_an_installed_release_comes_again_signed(entry, bundle, keys, signers, tmp_path):
    (tmp_path / "root/allowed_signers").unlink()
    unsigned = bundle(version=2, terms=Terms(1))
    first, second = deploy(entry, unsigned), deploy(entry, bundle(version=3, terms=Terms(1)))
    release.trust(entry, signers["ours"], QUICK)
    refused(entry, unsigned, "not signed")
    refused(entry, bundles.sign(unsigned, keys["next"]), "not from a signer")
    assert release.status(entry)["current"] == second
    assert deploy(entry, bundles.sign(unsigned, keys["ours"])) == first
    release.trust(entry, signers["ours"] + signers["next"], QUICK)  # and after a rotation of the keys
    deploy(entry, bundles.sign(bundle(version=4, terms=Terms(1)), keys["next"]))
    release.trust(entry, signers["next"], QUICK)
    assert deploy(entry, bundles.sign(unsigned, keys["next"])) == first


def test_endless_data(entry, make, tmp_path, monkeypatch):
    bundle = make(1)
    runner = bundle.files[layout.RUNNER]
    endless = dataclasses.replace(
        bundle, files={**bundle.files, layout.RUNNER: dataclasses.replace(runner, size_bytes=2**50)}
    )
    started = time.monotonic()
    with pytest.raises(RefusedError, match="MiB are needed"):
        deploy(entry, endless)
    assert time.monotonic() - started < 100 and not list((tmp_path / "root").rglob("*.part"))


def test_without_signers_nothing_is_checked(entry, bundle, tmp_path):
    (tmp_path / "root/allowed_signers").unlink()
    assert deploy(entry, bundle(terms=Terms(5)))
    assert deploy(entry, bundle(version=2, terms=Terms(1, PAST)))
    assert release.status(entry)["policy"]["floor"] == 0
