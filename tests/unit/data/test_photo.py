# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.data.decode import decode
from opendino.data.photo import open_photo, reduction_for
from opendino.errors import DataError

pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
pytest.importorskip("cv2", reason="the extra `fast` is not installed")


def pixels_by_pillow(data, channels=3, **options):
    pixels = np.asarray(decode(data, channels, **options))
    return pixels[..., None] if pixels.ndim == 2 else pixels


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {"quality": 70}),
        ("RGB", "JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("L", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
    ],
)
def test_colours_are_pillows(oracle, encode, mode, format, options):
    data = encode(oracle.picture(mode, 61, 90), format, **options)
    photo = open_photo(data, 3)
    assert photo.size == (61, 90)
    np.testing.assert_array_equal(photo.pixels(), pixels_by_pillow(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_grey_of_a_colour_image_is_pillows_but_for_rounding(oracle, encode, format):
    data = encode(oracle.picture("RGB"), format)
    found = open_photo(data, 1).pixels()
    assert np.abs(found.astype(int) - pixels_by_pillow(data, 1)).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_a_person_sees_it(oracle, encode, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(oracle.picture("RGB", 24, 40), format, exif=exif)
    photo = open_photo(data, 3)
    expected = pixels_by_pillow(data)
    assert photo.size == expected.shape[:2]
    np.testing.assert_array_equal(photo.pixels(), expected)
    np.testing.assert_array_equal(open_photo(data, 3, orient=False).pixels(), pixels_by_pillow(data, orient=False))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_is_the_mean_of_its_blocks(encode, reduction):
    """A smooth picture, so that leaving out high frequencies and averaging come to the same."""
    y, x = np.mgrid[0:101, 0:150]
    smooth = np.stack([x + y, 2 * y, 255 - x], axis=-1).clip(0, 255).astype(np.uint8)
    photo = open_photo(encode(Image.fromarray(smooth), "JPEG", quality=98, subsampling=0), 3)
    found = photo.pixels(reduction)
    assert found.shape[:2] == (-(-101 // reduction), -(-150 // reduction))
    assert photo.size == (101, 150)
    h, w = 101 // reduction, 150 // reduction
    blocks = smooth[: h * reduction, : w * reduction].reshape(h, reduction, w, reduction, 3).mean(axis=(1, 3))
    assert np.abs(found[:h, :w] - blocks)[:-1, :-1].max() <= 3


def test_the_largest_reduction_that_leaves_enough():
    assert reduction_for((400, 900), (100, 100), 2.0) == 2
    assert reduction_for((399, 900), (100, 100), 2.0) == 1
    assert reduction_for((1600, 1700), (100, 100), 2.0) == 8
    assert reduction_for((50, 50), (100, 100), 2.0) == 1
    assert reduction_for((900, 400), (100, 200), 1.0) == 2


@pytest.mark.parametrize("reduction", [1, 2])
def test_a_truncated_jpeg_is_refused_in_the_same_words(oracle, encode, reduction):
    data = encode(oracle.picture("RGB", 90, 120), "JPEG")[:1500]
    with pytest.raises(DataError) as wanted:
        decode(data, 3, name="a.jpg")
    with pytest.raises(DataError) as found:
        open_photo(data, 3, name="a.jpg").pixels(reduction)
    assert str(found.value) == str(wanted.value)


def test_what_only_the_other_decoder_can_take(oracle, encode, tmp_path):
    picture = oracle.picture("RGB")
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    others = {
        "cmyk": encode(picture.convert("CMYK"), "JPEG"),
        "palette": encode(picture.convert("P"), "PNG"),
        "see-through": encode(picture.convert("RGBA"), "PNG"),
        "key colour": encode(picture, "PNG", transparency=(0, 0, 0)),
        "deep": encode(deep, "PNG"),
        "tiff": encode(picture, "TIFF"),
        "text": b"no image",
    }
    for name, data in others.items():
        assert open_photo(data, 3) is None, name
    assert open_photo(encode(picture, "JPEG"), 4) is None
    assert open_photo(tmp_path / "missing.jpg", 3) is None


def test_bytes_and_files_are_one(oracle, encode, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(oracle.picture("RGB"), "JPEG"))
    np.testing.assert_array_equal(open_photo(path, 3).pixels(), open_photo(path.read_bytes(), 3).pixels())


@pytest.mark.parametrize("damage", ["bytes", "cut", "gap"])
def test_damaged_jpegs_are_read_and_refused_as_by_pillow(encode, damage):
    rng = np.random.default_rng(0)
    tiles = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    whole, outcomes = encode(Image.fromarray(tiles), "JPEG", quality=85), set()
    for _ in range(60):
        data = bytearray(whole)
        place = int(rng.integers(20, len(data) - 20))
        if damage == "bytes":
            data[place : place + 2] = rng.bytes(2)
        else:
            del data[place : None if damage == "cut" else place + int(rng.integers(1, 20))]
        found = [outcome(lambda data=bytes(data): pixels_by_pillow(data, name="it"))]
        photo = open_photo(bytes(data), 3, name="it")
        if photo is None:
            continue
        found.append(outcome(photo.pixels))
        outcomes.add(type(found[0]))
        if isinstance(found[0], str):
            assert found[0] == found[1]
        else:
            np.testing.assert_array_equal(*found)
    assert str in outcomes


def outcome(read):
    """Pixels, or why there are none."""
    try:
        return read()
    except DataError as error:
        return str(error)
