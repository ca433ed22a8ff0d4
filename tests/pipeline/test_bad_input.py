"""Wrong input: each is an error with the value and a hint."""

import pickle
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import DataError, ModelError, RecipeError, ToolkitError
from edgeship.toolkit.models import export, resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run
from edgeship.toolkit.runs.network import ExportedGraphs

SIDE = 16  # pixels


def picture(seed, mode="RGB", side=SIDE):
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A narrow ResNet-20 for two classes, as checkpoint and as ONNX."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.architecture("resnet20", classes=2, width=4)).eval()
    weights.save(model, folder)
    export.export(model, folder / "net.onnx", size=SIDE)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two classes of six images to choose from, and other ones to evaluate on."""
    for part, offset in (("train", 0), ("test", 100)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(6):
                picture(offset + 10 * label + number).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def start(tiny, photos, tmp_path):
    def start(until="select", **sections):
        table = {
            "load": {"weights": str(tiny / "model.safetensors")},
            "export": {"size": SIDE},
            "select": {"source": str(photos / "train"), "images": 4},
            "evaluate": {"source": str(photos / "test")},
        }
        for name, section in sections.items():
            table[name] = {**table.get(name, {}), **section}
        return run(Recipe.build(table), store=Store(tmp_path / "store"), until=until)

    return start


def refused(start, message, hint="", error=DataError, **sections):
    with pytest.raises(error, match=message) as caught:
        start(**sections)
    assert isinstance(caught.value, ToolkitError)
    assert hint in caught.value.hint and caught.value.hint


def test_good_input_passes(start, photos):
    manifest = read_json(start().folder("select") / "manifest.json")
    assert len(manifest["entries"]) == 4
    assert sorted(entry["label"] for entry in manifest["entries"]) == [0, 0, 1, 1]


class TestImages:
    def test_a_missing_folder(self, start, photos):
        refused(start, "no such file or folder: .*trian", "train", select={"source": str(photos / "trian")})

    def test_an_empty_folder(self, start, photos):
        (photos / "empty").mkdir()
        refused(start, "empty", select={"source": str(photos / "empty")})

    def test_one_class_only(self, start, photos):
        shutil.rmtree(photos / "test" / "dog")
        refused(start, "one class only: cat")

    def test_more_classes_than_outputs(self, start, photos):
        shutil.copytree(photos / "test" / "dog", photos / "test" / "emu")
        refused(start, "has 3 classes, the network 2 outputs", "csv")

    def test_fewer_images_than_asked(self, start):
        refused(start, "13.* 12|12.* 13", select={"images": 13})

    def test_calibration_images_that_are_evaluated_on(self, start, photos):
        shutil.copy(photos / "train" / "cat" / "1.png", photos / "test" / "dog" / "copy.png")
        refused(start, "1 of .*12 calibration images.*cat/1.png = dog/copy.png", select={"images": 12})

    def test_a_label_list_with_unknown_files(self, start, photos):
        (photos / "train" / "list.csv").write_text("file,label\ncat/1.png,0\ncat/none.png,1\n")
        source = {"source": str(photos / "train" / "list.csv"), "images": 1}
        refused(start, r"unknown file.*cat/none\.png", select=source)

    def test_an_archive_that_leaves_its_folder(self, start, photos):
        with zipfile.ZipFile(photos / "bad.zip", "w") as archive:
            archive.writestr("../../evil.png", b"x")
        refused(start, r"\.\./\.\./evil\.png", select={"source": str(photos / "bad.zip")})
        assert not list(photos.parent.rglob("evil.png"))

    @pytest.mark.parametrize("damage", ["cut", "text"])
    def test_a_corrupt_image_is_named_and_may_be_skipped(self, start, photos, damage):
        bad = photos / "train" / "cat" / "2.png"
        bad.write_bytes(bad.read_bytes()[:200] if damage == "cut" else b"not an image")
        refused(start, r"cat/2\.png", "--skip-unreadable", select={"images": 12})
        skipped = start(select={"images": 11, "skip_unreadable": True})
        names = [entry["file"] for entry in read_json(skipped.folder("select") / "manifest.json")["entries"]]
        assert len(names) == 11 and "cat/2.png" not in names
        found = read_json(skipped.folder("select") / "findings.json")
        assert any("1 unreadable" in finding["what"] and "cat/2.png" in finding["what"] for finding in found)

    def test_a_corrupt_evaluation_image_is_skipped_and_counted(self, start, photos):
        (photos / "test" / "dog" / "3.png").write_bytes(b"not an image")
        sections = {"compile": {"targets": ["onnxruntime"]}, "quantize": {"effort": "fast"}}
        refused(start, r"dog/3\.png", "--skip-unreadable", until="evaluate", **sections)
        done = start(until="evaluate", evaluate={"skip_unreadable": True}, **sections)
        assert read_json(done.folder("evaluate") / "accuracy.json")["data"]["images"] == 11
        (found,) = read_json(done.folder("evaluate") / "findings.json")
        assert found["what"].startswith("1 unreadable image(s) of test") and "dog/3.png" in found["what"]

    def test_grey_palette_and_transparent_images_are_fine(self, start, photos):
        for number, mode in enumerate(("L", "P", "RGBA", "LA")):
            picture(900 + number, mode).save(photos / "train" / "cat" / f"{mode}.png")
        start(select={"images": 16})


class TestWeights:
    def test_no_weights_named(self, start):
        refused(start, "load.weights is not set", "torchvision:", error=RecipeError, load={"weights": ""})

    def test_a_missing_checkpoint(self, start, tiny):
        path = str(tiny / "modle.safetensors")
        refused(start, "no such file or folder", "model.safetensors", load={"weights": path})

    def test_another_depth(self, start):
        refused(start, "resnet20, not resnet32", "resnet20", load={"model": "resnet32"})

    def test_an_unknown_model(self, start):
        refused(start, "resnet21|resnet20", load={"model": "resnet21"}, error=ToolkitError)

    def test_another_class_count(self, start, photos):
        for name in ("emu", "fox"):
            shutil.copytree(photos / "test" / "dog", photos / "test" / name)
        refused(start, "4 classes, the network 2 outputs")

    def test_a_pickle_with_code(self, start, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "hacked"), "w"))

        torch.save({"state_dict": Evil()}, tmp_path / "evil.pth", pickle_module=pickle)
        refused(start, "could run code", "state dict", load={"weights": str(tmp_path / "evil.pth")})
        assert not (tmp_path / "hacked").exists()

    def test_a_cut_off_checkpoint(self, start, tiny, tmp_path):
        content = (tiny / "model.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
        refused(start, "cannot read .*cut", "damaged", load={"weights": str(tmp_path / "cut.safetensors")})

    def test_nan_weights(self, start, tiny, tmp_path):
        model = weights.load(tiny).model
        model.conv1.weight.data[0, 0, 0, 0] = float("nan")
        weights.save(model, tmp_path / "nan")
        refused(start, "conv1.weight are NaN", load={"weights": str(tmp_path / "nan" / "model.safetensors")})

    def test_published_weights_that_do_not_exist(self, start):
        wrong = {"model": "resnet18", "weights": "torchvision:IMAGENET1K_V9"}
        refused(start, "no published weights", "IMAGENET1K_V1", error=RecipeError, load=wrong)

    def test_an_export_size_that_contradicts(self, start):
        refused(start, "contradicts", error=RecipeError, load={"preprocess": {"crop": 32}})


class TestOnnx:
    def test_a_float_classifier_enters_without_weights(self, start, tiny):
        done = start(load={"model": str(tiny / "net.onnx"), "weights": ""})
        described = read_json(done.folder("load") / "model.json")
        assert (described["name"], described["classes"]) == ("net", 2)
        graphs = ExportedGraphs.read(done.folder("export"))
        assert graphs.preprocess.crop == SIDE and graphs.graphs["float"].macs > 0

    def test_another_batch_is_set(self, start, tiny):
        done = start(load={"model": str(tiny / "net.onnx")}, export={"batch": "dynamic"}, until="export")
        assert ExportedGraphs.read(done.folder("export")).batch is None
        shape = onnx.load(done.folder("export") / "float.onnx").graph.input[0].type.tensor_type.shape
        assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 3, SIDE, SIDE]

    def test_its_size_decides(self, start, tiny):
        model = {"model": str(tiny / "net.onnx")}
        refused(
            start, "takes 16 x 16 pixels", "export.size", error=RecipeError, load=model, export={"size": 32}
        )

    def test_garbage(self, start, tmp_path):
        (tmp_path / "bad.onnx").write_bytes(b"garbage")
        refused(start, "bad.onnx", error=ModelError, load={"model": str(tmp_path / "bad.onnx")})

    def test_quantized_already(self, start, tmp_path):
        shape = [1, 3, SIDE, SIDE]
        nodes = [
            helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ]
        tensors = [
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("z", TensorProto.INT8, [], [0]),
        ]
        self.save(nodes, tensors, shape, TensorProto.FLOAT, tmp_path / "q.onnx")
        refused(
            start,
            "quantized already: node 'quantize'",
            error=ModelError,
            load={"model": str(tmp_path / "q.onnx")},
        )

    def test_integer_images(self, start, tmp_path):
        nodes = [
            helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ]
        self.save(nodes, [], [1, 3, SIDE, SIDE], TensorProto.INT32, tmp_path / "u.onnx")
        refused(start, "not float32", error=ModelError, load={"model": str(tmp_path / "u.onnx")})

    def save(self, nodes, tensors, shape, kind, path):
        images = helper.make_tensor_value_info("images", kind, shape)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])
        graph = helper.make_graph(nodes, "g", [images], [logits], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class TestPruning:
    def test_a_goal_needs_a_method(self, start):
        refused(start, "prune.method is none", "prune.method", error=RecipeError, prune={"keep_ratio": 0.5})

    def test_a_method_needs_a_goal(self, start):
        refused(start, "no goal", "prune.keep_ratio", error=RecipeError, prune={"method": "obs"})

    def test_an_onnx_file_cannot_be_pruned(self, start, tiny):
        load = {"model": str(tiny / "net.onnx"), "weights": ""}
        prune = {"method": "obs", "keep_ratio": 0.5}
        refused(
            start, "an ONNX file cannot be pruned", "load.weights", error=ModelError, load=load, prune=prune
        )

    def test_images_that_are_evaluated_on(self, start, photos):
        prune = {"method": "obs", "keep_ratio": 0.5, "source": str(photos / "test")}
        refused(start, "12 calibration images", prune=prune)

    def test_a_pruned_network_is_exported_beside_the_whole_one(self, start):
        prune = {"method": "magnitude", "keep_ratio": 0.5, "channel_multiple": 1}
        done = start(prune=prune, finetune={"epochs": 1, "crop_px": 1}, until="export")
        graphs = ExportedGraphs.read(done.folder("export")).graphs
        assert 0.4 < graphs["pruned"].macs / graphs["float"].macs < 0.65
        assert read_json(done.folder("prune") / "plan.json")["method"] == "magnitude"
        assert len(read_json(done.folder("finetune") / "history.json")["loss"]) == 1


def test_training_needs_a_name_labels_and_images(start, photos):
    train = {"weights": "train", "model": "resnet20"}
    refused(start, "load.train.source is not set", error=RecipeError, load=train)
    auto = {"weights": "train", "train": {"source": str(photos / "train")}}
    refused(start, "load.model is auto", error=RecipeError, load=auto)
    flat = photos / "flat"
    flat.mkdir()
    picture(1).save(flat / "1.png")
    refused(start, "no labels", load={**train, "train": {"source": str(flat)}})
