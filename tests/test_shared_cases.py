"""Foreign ONNX files that once gave a wrong figure: the case files next to the checkout, on every target."""

import json
import zipfile
from pathlib import Path

import pytest

from edgeship.toolkit.cli import app

SHARED = Path(__file__).parents[2] / "shared"
CASES = sorted((SHARED / "cases" / "onnx").glob("*.onnx"))
PHOTOS = SHARED / "data" / "cifar10-jpeg-test.zip"
NORMALIZED = ("--preprocess=mean=0.485,0.456,0.406", "--preprocess=std=0.229,0.224,0.225")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES or not PHOTOS.is_file(), reason="needs the case files in ../shared"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(PHOTOS) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))
        for name in names[:: len(names) // 64]:
            file = folder / Path(name).parent.name / Path(name).name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(archive.read(name))
    return folder


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_case_is_right_or_refused_with_its_cure(case, target, photos, tmp_path, capfd):
    stated = () if case.stem == "embedded-normalization" else NORMALIZED
    arguments = ["quantize", str(case), str(photos), "--images", "32", "--target", target, "--json", *stated]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--out", str(tmp_path / "q.onnx")])
    out, err = capfd.readouterr()
    if case.stem == "training-batchnorm":
        assert left.value.code == 1 and "model.eval()" in err and not (tmp_path / "q.onnx").exists()
        return
    assert left.value.code == 0, err
    summary = json.loads(out)
    check = summary["runtime_check"]
    assert (check is None) == (target == "tensorrt")
    if check is not None:
        assert check["status"] in {"equal", "repaired"}
        assert check["real_db"] > check["exact_db"] - 3 and check["exact_db"] > 30
    raw = case.stem == "embedded-normalization"
    assert summary["preprocess_source"] == ("graph" if raw else "stated")
