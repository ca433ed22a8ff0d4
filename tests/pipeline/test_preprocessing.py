"""Resolution of the preprocessing: recipe, checkpoint, or default for the size."""

import pytest

from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import ModelError, RecipeError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline.preprocessing import check_channels, resolve
from edgeship.toolkit.pipeline.recipe import PreprocessOptions

OWN = Preprocess(resize=236, crop=224, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bicubic")


@pytest.mark.parametrize(
    ("options", "own", "size", "resize", "crop"),
    [
        pytest.param({}, None, None, 256, 224, id="torchvision's"),
        pytest.param({}, None, 64, 64, 64, id="small networks see the whole picture"),
        pytest.param({}, None, 127, 127, 127, id="still small"),
        pytest.param({}, None, 128, 146, 128, id="torchvision's margin at another size"),
        pytest.param({}, None, 288, 329, 288, id="and larger"),
        pytest.param({}, OWN, None, 236, 224, id="the checkpoint's own"),
        pytest.param({}, OWN, 112, 118, 112, id="the checkpoint's margin at another size"),
        pytest.param({"resize": 232}, OWN, None, 232, 224, id="the recipe wins key by key"),
        pytest.param({"crop": 64}, None, None, 64, 64, id="a small crop"),
        pytest.param({"resize": 0}, None, 32, None, 32, id="0 keeps the size"),
        pytest.param({}, Preprocess(resize=None, crop=32), 64, None, 64, id="as does the checkpoint"),
        pytest.param({}, None, (96, 128), (96, 128), (96, 128), id="not square: the whole picture"),
        pytest.param({}, None, (240, 320), (240, 320), (240, 320), id="large ones, too"),
        pytest.param({}, OWN, (112, 224), (118, 236), (112, 224), id="the margin on both sides"),
        pytest.param({}, Preprocess(110, (96, 128)), (96, 128), 110, (96, 128), id="its own stays as it is"),
        pytest.param({}, Preprocess(110, (96, 128)), (48, 64), 55, (48, 64), id="its shorter side, halved"),
        pytest.param({}, Preprocess((100, 140), (96, 128)), 192, (200, 210), 192, id="both sides of another"),
        pytest.param({"resize": (100, 130)}, None, (96, 128), (100, 130), (96, 128), id="both sides stated"),
        pytest.param({"crop": (96, 128)}, None, None, (96, 128), (96, 128), id="a crop of two sides"),
    ],
)
def test_sizes(options, own, size, resize, crop):
    got = resolve(PreprocessOptions(**options), own, size)
    assert (got.resize, got.crop) == (resize, crop)


def test_colours_and_filter_come_from_the_same_places():
    got = resolve(PreprocessOptions(mean=(0.1, 0.2, 0.3)), OWN, None)
    assert got.mean == (0.1, 0.2, 0.3)
    assert (got.std, got.interpolation) == (OWN.std, OWN.interpolation)


def test_two_sizes_that_contradict_are_refused():
    with pytest.raises(RecipeError, match=r"crop = 64 contradicts the input size of 96") as caught:
        resolve(PreprocessOptions(crop=64), None, 96)
    assert "export.size" in caught.value.hint


def test_json_keeps_everything():
    assert Preprocess.from_json(plain(OWN)) == OWN


@pytest.mark.parametrize("mean", [(0.5,), (0.5,) * 3])
def test_channels_that_differ_are_refused_with_the_cure(mean):
    prepared = Preprocess(mean=mean, std=mean)
    check_channels(prepared, len(mean))
    with pytest.raises(RecipeError, match=f"{len(mean)} in its mean and {len(mean)} in its std") as caught:
        check_channels(prepared, 4 - len(mean), option="--preprocess ")
    cure = {1: "--preprocess mean=0.485,0.456,0.406 ", 3: "--preprocess mean=0.5 --preprocess std=0.25"}
    assert cure[len(mean)] in caught.value.hint
    with pytest.raises(RecipeError):
        check_channels(Preprocess(mean=(0.5,)), 1)
    with pytest.raises(ModelError, match="4 channels") as several:
        check_channels(prepared, 4)
    assert "RGB" in several.value.hint
