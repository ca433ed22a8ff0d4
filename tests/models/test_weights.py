"""Checkpoints in every usual form, and rejection of damaged and unsafe ones."""

import argparse
import json
import os
import urllib.error
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import peak
from safetensors.torch import save_file

from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models import weights
from edgeship.toolkit.models.recognize import NESTS
from edgeship.toolkit.models.resnet import ResNet, architecture, build, names, resize

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name="resnet18", seed=0, **options):
    return build(architecture(name, width=4, **{"classes": 6, **options}), seed=seed).eval()


def logits(model):
    with torch.inference_mode():
        return model(IMAGES)


def renamed(state, *pairs):
    for old, new in pairs:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in names() if not name.startswith("plain_") and not name.endswith(("152", "110"))]
    + [("resnet20", {"shortcut": "B"}), ("resnet18", {"shortcut": "C"}), ("resnet18", {"stem": "cifar"})],
)
def test_a_bare_state_dict_says_what_it_is(name, options, tmp_path):
    model = network(name, **options)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    loaded = weights.load(tmp_path / "net.pth")
    assert loaded.model.architecture == model.architecture
    assert torch.equal(logits(loaded.model), logits(model))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: {"state_dict": s, "epoch": 3, "best_acc1": 0.5}, id="state_dict"),
        pytest.param(lambda s: {"model": s, "optimizer": {"state": {}}}, id="model"),
        pytest.param(lambda s: {"model_state_dict": OrderedDict(s)}, id="model_state_dict"),
        pytest.param(lambda s: {"ema": {"module": s}}, id="ema inside module"),
        pytest.param(lambda s: {f"module.{k}": v for k, v in s.items()}, id="DataParallel"),
        pytest.param(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, id="torch.compile"),
        pytest.param(lambda s: {f"model._orig_mod.module.{k}": v for k, v in s.items()}, id="all at once"),
        pytest.param(
            lambda s: {k if k.startswith("fc") else f"backbone.{k}": v for k, v in s.items()}, id="backbone"
        ),
        pytest.param(lambda s: renamed(s, ("fc.", "head.fc.")), id="another head"),
        pytest.param(lambda s: renamed(s, ("fc.", "linear."), ("downsample", "shortcut")), id="shortcut"),
        pytest.param(lambda s: {**s, "total_ops": torch.zeros(1)}, id="profiler's leftovers"),
        pytest.param(
            lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, id="no batches tracked"
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".th"])
def test_wrappings_and_prefixes(wrap, suffix, tmp_path):
    model = network()
    torch.save(wrap(model.state_dict()), tmp_path / f"net{suffix}")
    loaded = weights.load(tmp_path / f"net{suffix}")
    assert loaded.model.architecture == model.architecture
    assert torch.equal(logits(loaded.model), logits(model))


def test_cifar_checkpoint_with_linear_and_no_shortcuts(tmp_path):
    model = network("resnet20", classes=10)
    torch.save({"state_dict": renamed(model.state_dict(), ("fc.", "module.linear."))}, tmp_path / "a.th")
    prefixed = {f"module.{k}".replace("fc.", "linear."): v for k, v in model.state_dict().items()}
    torch.save({"state_dict": prefixed, "best_prec1": 91.7}, tmp_path / "b.th")
    for file in ("a.th", "b.th"):
        loaded = weights.load(tmp_path / file).model
        assert (loaded.architecture.name, loaded.architecture.shortcut) == ("resnet20", "A")
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_become_float32(dtype, suffix, tmp_path):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network().state_dict().items()}
    (torch.save if suffix == ".pt" else save_file)(state, tmp_path / f"net{suffix}")
    loaded = weights.load(tmp_path / f"net{suffix}").model
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"].float())
    assert loaded.conv1.weight.requires_grad


def test_a_plain_net_is_one_when_asked(tmp_path):
    model = network("plain_resnet20")
    torch.save(model.state_dict(), tmp_path / "net.pth")
    assert weights.load(tmp_path / "net.pth").model.architecture.shortcut == "A"
    loaded = weights.load(tmp_path / "net.pth", "plain_resnet20").model
    assert torch.equal(logits(loaded), logits(model))


def test_a_pruned_net_comes_back_from_its_folder_and_from_its_file_alone(tmp_path):
    arch = architecture("resnet34", width=8, classes=6)
    widths = replace(arch.widths, inner=(((3,), (8,), ()), *arch.widths.inner[1:]))
    model = build(resize(arch, widths), seed=1).eval()
    preprocess = Preprocess(resize=None, crop=32, interpolation="bicubic")
    file = weights.save(model, tmp_path / "pruned", preprocess)
    for source in (tmp_path / "pruned", file):
        loaded = weights.load(source)
        assert loaded.model.architecture == model.architecture  # the last block's drop included
        assert loaded.preprocess == preprocess
        assert torch.equal(logits(loaded.model), logits(model))
    assert json.loads((tmp_path / "pruned" / "widths.json").read_text())["architecture"]["name"] == "resnet34"
    assert sorted(p.name for p in (tmp_path / "pruned").iterdir()) == ["model.safetensors", "widths.json"]


def test_strides_of_the_stem_are_stored_and_files_without_them_are_read(tmp_path):
    dense = build(architecture("resnet18", width=8, classes=6), seed=1).eval()
    coarse = ResNet(replace(dense.architecture, stem_strides=(5, 1))).eval()
    coarse.load_state_dict(dense.state_dict())
    assert not torch.equal(logits(coarse), logits(dense))
    file = weights.save(coarse, tmp_path / "coarse")
    for source in (tmp_path / "coarse", file):
        assert torch.equal(logits(weights.load(source).model), logits(coarse))
    description = json.loads((tmp_path / "coarse" / "widths.json").read_text())
    assert description["schema"] == 2  # a version that does not know the strides refuses the file
    weights.save(dense, tmp_path / "dense")
    description = json.loads((tmp_path / "dense" / "widths.json").read_text())
    assert description["schema"] == 1
    del description["architecture"]["stem_strides"]  # as earlier versions wrote it
    (tmp_path / "dense" / "widths.json").write_text(json.dumps(description))
    assert torch.equal(logits(weights.load(tmp_path / "dense").model), logits(dense))


def test_saving_twice_writes_the_same_bytes(tmp_path):
    model = network()
    assert (
        weights.save(model, tmp_path / "a").read_bytes() == weights.save(model, tmp_path / "b").read_bytes()
    )


class Bomb:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": network().state_dict(), "x": Bomb(tmp_path / "ran")}, tmp_path / "net.pth")
    with pytest.raises(DataError, match="could run code") as caught:
        weights.load(tmp_path / "net.pth")
    assert "state_dict()" in caught.value.hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_a_file_that_is_cut_off(suffix, part, tmp_path):
    file = tmp_path / f"net{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network().state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="cannot read") as caught:
        weights.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"\x08\x08\x12\x07pytorch", "an ONNX file, not a checkpoint", "end in .onnx"),
        (b"hello", "neither a zip", "save"),
    ],
)
def test_a_file_of_another_kind(content, message, hint, tmp_path):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        weights.load(tmp_path / "net.pth")
    assert hint in caught.value.hint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_name_their_tensor(bad, tmp_path):
    state = network().state_dict()
    state["layer3.1.bn2.running_var"][2] = bad
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"1 of 16 values of layer3\.1\.bn2\.running_var"):
        weights.load(tmp_path / "net.pth")


def test_another_depth_lists_what_differs(tmp_path):
    torch.save(network("resnet18").state_dict(), tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"is a resnet18, not resnet34: missing layer1\.2") as caught:
        weights.load(tmp_path / "net.pth", "resnet34")
    assert "load.model=resnet18" in caught.value.hint
    with pytest.raises(RecipeError, match="no model named"):
        weights.load(tmp_path / "net.pth", "resnet-34")


def test_a_misfit_names_the_nearest_member_and_the_tensors(tmp_path):
    state = network("resnet50").state_dict()
    state["layer1.0.se.fc1.weight"] = torch.zeros(4, 4, 1, 1)
    del state["layer4.2.bn3.weight"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"nearest, resnet50: missing layer4\.2\.bn3\.weight .*se\.fc1"):
        weights.load(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "content",
    [{"features.0.weight": torch.zeros(3, 3, 3, 3)}, {"epoch": 1}, [1, 2], {"state_dict": {}}],
)
def test_what_is_no_resnet(content, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(DataError):
        weights.load(tmp_path / "net.pth")


def test_wrong_paths_and_names(tmp_path):
    with pytest.raises(DataError, match="no checkpoint"):
        weights.load(tmp_path / "absent.pth")
    with pytest.raises(DataError, match="no checkpoint"):
        weights.load(tmp_path)
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no checkpoint: .*\.pth"):
        weights.load(tmp_path / "net.h5")


@pytest.mark.parametrize("change", [{"schema": 1}, {"architecture": {"name": "resnet18"}}, []])
def test_an_edited_description(change, tmp_path):
    weights.save(network(), tmp_path)
    (tmp_path / "widths.json").write_text(json.dumps(change))
    with pytest.raises(DataError, match="description"):
        weights.load(tmp_path)


def test_widths_of_another_model(tmp_path):
    weights.save(network("resnet18"), tmp_path / "a")
    weights.save(network("resnet34"), tmp_path / "b")
    (tmp_path / "a" / "widths.json").write_text((tmp_path / "b" / "widths.json").read_text())
    with pytest.raises(DataError, match="does not fit its description"):
        weights.load(tmp_path / "a")


def published(monkeypatch, tmp_path, content):
    """Serve `content` under a name that promises its hash."""
    file = tmp_path / "served"
    file.write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "TORCHVISION", tmp_path.as_uri() + "/")
    name = f"net-{weights.sha256_file(file)[:8]}.pth"
    file.rename(tmp_path / name)
    monkeypatch.setitem(weights.PUBLISHED, ("resnet18", "IMAGENET1K_V1"), name)
    return tmp_path / name


def test_download_checks_the_hash_and_keeps_the_file(monkeypatch, tmp_path):
    served = published(monkeypatch, tmp_path, b"weights")
    path = weights.download("torchvision:IMAGENET1K_V1", "resnet18")
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(tmp_path / "cache" / "edgeship")
    served.unlink()  # the second time needs no connection
    assert weights.download("torchvision:IMAGENET1K_V1", "resnet18") == path
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot download"):
        weights.download("torchvision:IMAGENET1K_V1", "resnet18")


def test_a_wrong_hash_leaves_nothing(monkeypatch, tmp_path):
    served = published(monkeypatch, tmp_path, b"weights")
    served.write_bytes(b"tampered")
    with pytest.raises(DataError, match="published hash"):
        weights.download("torchvision:IMAGENET1K_V1", "resnet18")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_offline_is_said_with_a_way_out(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match="cannot download") as caught:
        weights.download("torchvision:IMAGENET1K_V2", "resnet50")
    assert "resnet50-11ad3fa6.pth" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        weights.download("torchvision:IMAGENET1K_V2", "resnet18")
    assert "did you mean" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), sorted(weights.PUBLISHED))
def test_published_names_are_reachable(model, name):
    try:
        path = weights.download(f"torchvision:{name}", model)
    except DataError as error:
        pytest.skip(str(error))
    assert weights.load(Path(path), model).model.architecture.classes == 1000


ADVICE = ("weights_only", "torch.load", "safe_globals")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (np.float64(0.5), "numpy._core.multiarray.scalar"),
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (torch.nn.ReLU(), "torch.nn.modules.activation.ReLU"),
        (Bomb("x"), "system"),
    ],
)
def test_a_refusal_names_the_object_and_repeats_no_advice(content, name, tmp_path):
    torch.save({"state_dict": network().state_dict(), "extra": content}, tmp_path / "net.pth")
    with pytest.raises(DataError, match="could run code") as caught:
        weights.load(tmp_path / "net.pth")
    assert name in str(caught.value)
    assert not any(word in str(caught.value) for word in ADVICE)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"garbage", b"\x80\x02garbage", b"PK\x03\x04" + b"x" * 100, b"\x80\x02}q\x00."]
)
def test_damage_repeats_no_advice(content, tmp_path):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(DataError) as caught:
        weights.load(tmp_path / "net.pth")
    assert not any(word in str(caught.value) + caught.value.hint for word in ADVICE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_no_state_dict(tmp_path):
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "net.pt")
    with pytest.raises(DataError, match="TorchScript"):
        weights.load(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pth.tar", ".bin", ".ckpt", ".PTH"])
def test_other_suffixes_of_a_torch_file(suffix, tmp_path):
    torch.save(network().state_dict(), tmp_path / f"net{suffix}")
    assert weights.load(tmp_path / f"net{suffix}").model.architecture.name == "resnet18"


def bounded(call):
    """Seconds and peak MB of a call that must be refused."""
    with peak() as used, pytest.raises(DataError) as caught:
        call()
    assert used.seconds < 2 and used.megabytes < 500, used
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    "key", ["layer1.999999999999", "layer1.999", "layer999999999999.0", "layer1." + "9" * 5000]
)
def test_a_block_number_decides_nothing(key, tmp_path):
    state = {**network().state_dict(), f"{key}.conv1.weight": torch.zeros(4, 4, 3, 3)}
    torch.save(state, tmp_path / "net.pth")
    assert "unexpected" in bounded(lambda: weights.load(tmp_path / "net.pth"))


def test_a_checkpoint_that_holds_itself(tmp_path):
    loop = {"epoch": 1}
    loop["state_dict"] = loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert "no tensors" in bounded(lambda: weights.load(tmp_path / "loop.pth"))
    tree = {"epoch": 1}
    for _ in range(30):  # 8 ** 30 ways down
        tree = dict.fromkeys(NESTS, tree)
    torch.save(tree, tmp_path / "tree.pth")
    assert "no tensors" in bounded(lambda: weights.load(tmp_path / "tree.pth"))


def test_a_tensor_that_claims_more_than_is_stored(tmp_path):
    state = network().state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)
    torch.save(state, tmp_path / "net.pth")
    assert "but 4 bytes are stored" in bounded(lambda: weights.load(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 3, 7, 7, dtype=torch.int8),
        torch.zeros(4, 3, 7, 7).to_sparse(),
        torch.zeros(4, 3, 7, 7).cfloat(),
    ],
)
def test_tensors_of_another_kind_are_named(tensor, tmp_path):
    torch.save({**network().state_dict(), "conv1.weight": tensor}, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"conv1\.weight is .*expected plain floating-point"):
        weights.load(tmp_path / "net.pth")


def test_a_checkpoint_that_unpacks_to_gigabytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        with archive.open("net/data/0", "w") as stream:
            for _ in range(4):
                stream.write(bytes(1 << 24))
    assert "unpack to 67,108,8" in bounded(lambda: weights.load(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("architecture", "classes"), 10**12),
        (("architecture", "classes"), -1),
        (("architecture", "channels"), 1.5),
        (("architecture", "unit"), "attention"),
        (("architecture", "shortcut"), None),
        (("architecture", "stem_strides"), [0, 1]),
        (("architecture", "stem_strides"), [10**6, 1]),
        (("architecture", "stem_strides"), [2]),
        (("architecture", "widths", "stem"), "64"),
        (("architecture", "widths", "streams"), [64]),
        (("architecture", "widths", "inner"), [[[4]] * 100_000]),
        (("architecture", "widths", "inner"), [[[4, 4, 4]]] * 4),
        (("preprocess", "crop"), 0),
        (("preprocess", "crop"), 10**12),
        (("preprocess", "resize"), True),
        (("preprocess", "mean"), [float("nan")] * 3),
        (("preprocess", "std"), [0.0] * 3),
        (("preprocess", "std"), ["1"] * 3),
        (("preprocess", "interpolation"), "cubic"),
        (("preprocess", "mean"), 5),
    ],
)
def test_a_description_out_of_range(path, value, tmp_path):
    weights.save(network(), tmp_path, Preprocess())
    description = json.loads((tmp_path / "widths.json").read_text())
    place = description
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "widths.json").write_text(json.dumps(description))
    assert "description" in bounded(lambda: weights.load(tmp_path))
