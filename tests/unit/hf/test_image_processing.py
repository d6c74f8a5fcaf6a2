# SPDX-License-Identifier: Apache-2.0
"""The image processor from outside: settings, files, kinds of input, and what comes out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from opendino.hf import AutoImageProcessor
from opendino.hf.errors import InputError
from opendino.hf.image_processing import Dinov2ImageProcessor, backend_of, size_of

PUBLISHED = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))


def test_writes_the_published_file(tmp_path):
    Dinov2ImageProcessor(backend="torch").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == PUBLISHED


def test_reads_the_published_file(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PUBLISHED, "size": {"shortest_edge": 300}}))
    processor = Dinov2ImageProcessor.from_pretrained(tmp_path)
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 300}, {"height": 224, "width": 224})
    assert processor.backend == "pil"
    changed, rest = Dinov2ImageProcessor.from_pretrained(
        tmp_path, crop_size=98, backend="torch", colour=3, return_unused_kwargs=True
    )
    assert (changed.crop_size["width"], changed.backend, changed.is_fast) == (98, "torch", True)
    assert rest["colour"] == 3


def test_settings_of_one_call(image):
    processor = Dinov2ImageProcessor()
    out = processor(image, size=40, crop_size={"height": 30, "width": 20}, return_tensors="pt").pixel_values
    assert out.shape == (1, 3, 30, 20)
    assert out.dtype == torch.float32
    assert processor.size == {"shortest_edge": 256}
    raw = processor(image, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    assert np.array_equal(raw["pixel_values"][0], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_every_kind_of_input_gives_the_same(image, backend):
    processor = Dinov2ImageProcessor(size=48, crop_size=42, backend=backend)
    array = np.asarray(image)
    first = array.transpose(2, 0, 1).copy()
    want = processor(image, return_tensors="pt").pixel_values
    for other in (array, first, torch.from_numpy(array.copy()), torch.from_numpy(first), [[image]]):
        assert torch.equal(processor(other, return_tensors="pt").pixel_values, want)
    mixed = processor([image, array, torch.from_numpy(first)], return_tensors="pt").pixel_values
    assert torch.equal(mixed, want.expand(3, -1, -1, -1))
    batch = processor(torch.from_numpy(first).expand(2, -1, -1, -1), return_tensors="pt").pixel_values
    assert torch.equal(batch, want.expand(2, -1, -1, -1))


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_forms_of_the_result(image, backend):
    processor = Dinov2ImageProcessor(size=48, crop_size=42, backend=backend)
    tensor = processor([image, image], return_tensors="pt").pixel_values
    array = processor([image, image], return_tensors="np").pixel_values
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, tensor.numpy())
    listed = processor([image, image])["pixel_values"]
    assert isinstance(listed, list)
    assert np.array_equal(np.asarray(listed[1]), array[1])
    last = processor(image, return_tensors="np", data_format="channels_last").pixel_values
    assert np.array_equal(last[0], array[0].transpose(1, 2, 0))
    moved = processor(image, return_tensors="pt").to("cpu", torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16


def test_images_of_other_sizes_make_no_batch(image):
    processor = Dinov2ImageProcessor(do_center_crop=False)
    pair = [image, image.rotate(90, expand=True)]
    with pytest.raises(InputError, match="do not make one batch"):
        processor(pair, return_tensors="pt")
    assert [x.shape for x in processor(pair)["pixel_values"]] == [(3, 256, 341), (3, 341, 256)]


def test_backend_of_one_call(image):
    processor = Dinov2ImageProcessor()
    fast = processor(image, return_tensors="pt", backend="torch").pixel_values
    assert torch.equal(fast, processor(image, return_tensors="pt", use_fast=True).pixel_values)
    assert torch.equal(fast, Dinov2ImageProcessor(backend="torchvision")(image, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("size", "name", "want"),
    [
        (256, "size", {"shortest_edge": 256}),
        (224, "crop_size", {"height": 224, "width": 224}),
        ((30, 40), "size", {"height": 30, "width": 40}),
        ({"shortest_edge": 9, "longest_edge": None}, "size", {"shortest_edge": 9}),
    ],
)
def test_forms_of_a_size(size, name, want):
    assert size_of(size, name) == want


@pytest.mark.parametrize("size", [None, {}, {"longest_edge": 3}, {"height": 3}, [1, 2, 3], 0])
def test_sizes_that_are_none(size):
    with pytest.raises(InputError, match="was wanted"):
        size_of(size, "size")


def test_names_of_backends():
    assert [backend_of(None), backend_of(None, True), backend_of("torchvision", False)] == ["pil", "torch", "torch"]
    with pytest.raises(InputError, match="choose 'pil'"):
        backend_of("opencv")


def test_auto_reads_a_folder_of_settings_only(tmp_path):
    Dinov2ImageProcessor(crop_size=98).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, use_fast=True)
    assert type(processor) is Dinov2ImageProcessor
    assert (processor.crop_size["height"], processor.backend) == (98, "torch")


@pytest.mark.parametrize("size", [{"shortest_edge": 224}, {"height": 224}, 0, -5, {"height": 224, "width": 0}])
def test_crops_that_are_none(size):
    with pytest.raises(InputError, match="crop_size="):
        Dinov2ImageProcessor(crop_size=size)


@pytest.mark.parametrize("size", [-5, 0, {"shortest_edge": -1}, {"height": -2, "width": 3}])
def test_sides_below_one(size, image):
    with pytest.raises(InputError, match="in pixels from 1 on"):
        Dinov2ImageProcessor(size=size)
    with pytest.raises(InputError, match="in pixels from 1 on"):
        Dinov2ImageProcessor()(image, size=size)


@pytest.mark.parametrize("resample", [9, -1, True])
def test_filters_that_pillow_has_not(resample, image):
    with pytest.raises(InputError, match=r"is no filter of Pillow; choose one of 0 \(nearest\)"):
        Dinov2ImageProcessor(resample=resample)
    with pytest.raises(InputError, match="is no filter of Pillow"):
        Dinov2ImageProcessor()(image, resample=resample)


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_images_that_are_none(backend):
    processor = Dinov2ImageProcessor(backend=backend)
    for empty in (np.zeros((0, 5, 3), np.uint8), torch.zeros(3, 0, 5), Image.new("RGB", (0, 4))):
        with pytest.raises(InputError, match="an image without pixels came"):
            processor(empty)
    for value in (np.nan, np.inf):
        spoilt = np.full((30, 40, 3), value, np.float32)
        with pytest.raises(InputError, match="not finite"):
            processor(spoilt)
        with pytest.raises(InputError, match="not finite"):
            processor(torch.from_numpy(spoilt))
    deep = np.full((30, 40, 3), 4095, np.uint16)
    with pytest.raises(InputError, match="values from 4095 to 4095 cannot be resized"):
        processor(deep)


def test_arrays_that_come_back_can_be_written():
    plain = Dinov2ImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    (array,) = plain(Image.new("RGB", (4, 4)))["pixel_values"]
    array += 1
    torch.from_numpy(array)
