# SPDX-License-Identifier: Apache-2.0
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from opendino.data.decode import decode, match_channels, read_npy
from opendino.errors import DataError

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def pixel(image, where=(0, 0)):
    return image.getpixel(where)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF"])
def test_every_format_is_colour_or_grey_as_asked(encode, oracle, format):
    photo = oracle.picture()
    data = encode(photo, format)
    colour, grey = decode(data, 3), decode(data, 1)
    assert (colour.mode, grey.mode) == ("RGB", "L")
    assert colour.size == grey.size == photo.size
    if format in ("PNG", "BMP", "TIFF", "PPM", "TGA"):
        np.testing.assert_array_equal(np.asarray(colour), np.asarray(photo))
        np.testing.assert_array_equal(np.asarray(grey), np.asarray(photo.convert("L")))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_path_and_its_bytes_are_the_same_image(tmp_path, encode, oracle, format):
    path = tmp_path / "photo"
    path.write_bytes(encode(oracle.picture(), format))
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(decode(path.read_bytes())))


def test_grey_is_repeated_for_three_channels(encode, oracle):
    data = encode(oracle.picture("L"))
    colour = np.asarray(decode(data, 3))
    np.testing.assert_array_equal(colour, np.asarray(oracle.picture("L"))[..., None].repeat(3, axis=2))


def test_one_bit_images_are_black_and_white(encode):
    image = Image.fromarray(np.eye(5, dtype=bool))
    for channels in (1, 3):
        assert np.asarray(decode(encode(image), channels)).reshape(5, 5, -1)[0, :2, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    """Half transparent black over white is middle grey, fully transparent black is white."""
    image = Image.new("LA", (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (0, alpha))
    stream = io.BytesIO()
    image.convert(mode).save(stream, "PNG")
    decoded = decode(stream.getvalue(), 3)
    assert [pixel(decoded, (x, 0))[0] for x in range(3)] == pytest.approx([0, 127, 255], abs=1)
    assert decode(stream.getvalue(), 1).mode == "L"


def test_opaque_alpha_changes_nothing(encode, oracle):
    np.testing.assert_array_equal(
        np.asarray(decode(encode(oracle.picture("RGBA")))), np.asarray(oracle.picture().convert("RGB"))
    )


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
def test_palettes_with_and_without_transparency(encode, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    for x in range(3):
        image.putpixel((x, 0), x)
    assert pixel(decode(encode(image)), (2, 0)) == (0, 0, 200)
    seen = decode(encode(image, transparency=transparency))
    assert pixel(seen, (0, 0)) == (255, 255, 255)
    assert pixel(seen, (1, 0)) == (0, 200, 0)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_becomes_white(encode, mode):
    black = 0 if mode == "L" else (0, 0, 0)
    image = Image.new(mode, (2, 1), black)
    image.putpixel((1, 0), 90 if mode == "L" else (90, 90, 90))
    decoded = decode(encode(image, transparency=black), 1)
    assert [pixel(decoded, (x, 0)) for x in range(2)] == [255, 90]


@pytest.mark.parametrize(("mode", "format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")])
def test_other_colour_spaces_become_red_where_they_are_red(encode, mode, format):
    red = Image.new("RGB", (8, 8), (230, 20, 20))
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    else:
        image = red.convert(mode)
    options = {"quality": 95} if format == "JPEG" else {}
    assert pixel(decode(encode(image, format, **options)), (4, 4)) == pytest.approx((230, 20, 20), abs=6)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_steps(encode, format):
    data = encode(Image.fromarray(RAMP), format)
    for channels in (1, 3):
        pixels = decode(data, channels)
        assert pixels.shape == (6, 8, channels)
        np.testing.assert_allclose(pixels[..., -1], RAMP / 65535, atol=1e-7)


def test_twelve_bits_fill_the_range_that_is_given(encode):
    data = encode(Image.fromarray((RAMP // 12).astype(np.uint16)))
    pixels = decode(data, 1, value_range=(1000.0, 3000.0))
    np.testing.assert_allclose(pixels[..., 0], np.clip((RAMP // 12 - 1000.0) / 2000, 0, 1), atol=1e-6)


def test_thirty_two_bit_integers_and_floats(encode):
    whole = encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF")
    np.testing.assert_allclose(decode(whole, 1)[..., 0], RAMP / 65535, atol=1e-7)
    share = encode(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF")
    np.testing.assert_allclose(decode(share, 1)[..., 0], RAMP / 65535, atol=1e-7)
    with pytest.raises(DataError, match=r"values from 0.0 to 47000.0 are not in 0..1; set `value_range`"):
        decode(encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), 1)


def test_not_a_number_is_refused(encode):
    bad = np.full((4, 4), np.nan, dtype=np.float32)
    for value_range in (None, (0.0, 1.0)):
        with pytest.raises(DataError, match="not"):
            decode(encode(Image.fromarray(bad), "TIFF"), 1, value_range=value_range)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode, orientation):
    """An L-shaped mark, stored turned, comes out upright: checked against Pillow's own table of turns."""
    upright = Image.fromarray(np.array([[255, 0, 0], [255, 255, 0]], dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transposition that stores the image for each orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "TIFF"):
        data = encode(stored, format, exif=exif)
        np.testing.assert_array_equal(np.asarray(decode(data, 1)), np.asarray(upright))
    assert decode(encode(stored, exif=exif), 1, orient=False).size == stored.size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_leaves_the_pixels(encode, oracle):
    data = encode(oracle.picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    assert decode(data).size == oracle.picture().size


def test_arrays_of_bytes_are_photographs():
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(np.asarray(decode(npy(array), 3)), array)
    assert decode(npy(array[..., 0]), 3).mode == "RGB"
    assert decode(npy(array[..., :1]), 1).mode == "L"


def test_arrays_of_many_channels_keep_them(tmp_path):
    array = np.random.default_rng(0).integers(0, 65535, (4, 5, 7)).astype(">u2")
    np.save(tmp_path / "a.npy", array)
    pixels = decode(tmp_path / "a.npy", 7)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, array / 65535, atol=1e-7)
    np.testing.assert_allclose(decode(npy(array.astype(np.uint8)), 7), array.astype(np.uint8) / 255, atol=1e-7)
    np.testing.assert_array_equal(decode(npy(array > 9), 7), array > 9)


@pytest.mark.parametrize(
    ("array", "channels", "message"),
    [
        (np.zeros((7, 4, 5)), 7, "5 channels, 7 were wanted; the channels must come last"),
        (np.zeros((4, 5, 3)), 1, "3 channels, 1 were wanted"),
        (np.zeros((2, 3, 4, 5)), 3, r"\[H, W\] or \[H, W, C\] was wanted"),
        (np.zeros((0, 4)), 1, "was wanted"),
        (np.full((2, 2), -5, dtype=np.int16), 1, "int16 values from -5 to -5"),
        (np.array([["a"]]), 1, "cannot be decoded"),
    ],
)
def test_arrays_that_do_not_fit(array, channels, message):
    with pytest.raises(DataError, match=message):
        decode(npy(array), channels)


@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_are_those_that_numpy_reads(fortran):
    array = np.random.default_rng(0).random((3, 4, 5)).astype(">f4")
    found = read_npy(npy(np.asfortranarray(array) if fortran else array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_an_array_that_says_it_is_huge_takes_no_memory(tmp_path):
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7, 3)}
    np.lib.format.write_array_header_1_0(head, shape)
    (tmp_path / "a.npy").write_bytes(head.getvalue() + bytes(64))
    for source in (tmp_path / "a.npy", head.getvalue() + bytes(64)):
        with pytest.raises(DataError, match="2400000000000000 bytes, and 64 are there"):
            decode(source, 3)


def test_an_array_of_objects_is_never_unpickled():
    with pytest.raises(DataError, match="never unpickled"):
        decode(npy(np.array([{"a": 1}], dtype=object)), 3)


def test_bands_and_pages_make_channels(encode):
    pixels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    rgba = Image.fromarray(pixels)
    np.testing.assert_allclose(decode(encode(rgba), 4), pixels / 255, atol=1e-7)
    pages = [Image.fromarray(np.full((3, 5), value, dtype=np.uint16)) for value in (0, 6553, 65535, 13107, 1)]
    stack = decode(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 5)
    np.testing.assert_allclose(stack[1, 1], np.array([0, 6553, 65535, 13107, 1]) / 65535, atol=1e-7)
    with pytest.raises(DataError, match=r"4 channels on 1 pages; 6 were wanted"):
        decode(encode(rgba), 6)


@pytest.mark.parametrize("name", ["deflate", "lzw", "planes", "tiles"])
def test_tiff_of_five_samples(tiff_oracle, tmp_path, name):
    with np.load(tiff_oracle.STORED) as stored:
        data = stored[name].tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    dtype = tiff_oracle.CASES[name][0]
    expected = tiff_oracle.array(dtype) / (255 if dtype == "u1" else 65535)
    for source in (data, tmp_path / "a.tif"):
        np.testing.assert_allclose(decode(source, 5), expected, atol=1e-6)


def test_a_truncated_file_is_an_error(encode, oracle):
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encode(oracle.picture(), format)
        with pytest.raises(DataError, match="photo 7: "):
            decode(data[: len(data) // 2], name="photo 7")


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\x93NUMPY", b"GIF89a"]
)
def test_rubbish_is_an_error(data):
    for channels in (1, 3, 5):
        with pytest.raises(DataError):
            decode(data, channels)


def test_random_damage_never_escapes_as_another_error(encode, oracle, tiff_oracle):
    rng = np.random.default_rng(0)
    with np.load(tiff_oracle.STORED) as stored:
        tiff = stored["deflate"].tobytes()
    sources = [(encode(oracle.small(), format), 3) for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]
    for data, channels in [*sources, (tiff, 5)]:
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                damaged[place] = rng.integers(256)
            try:
                decode(bytes(damaged), channels)
            except DataError:
                continue


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(DataError, match=r"gone.png: there is no such file"):
        decode(tmp_path / "gone.png")


def test_a_decompression_bomb_is_refused(encode):
    small = encode(Image.new("1", (8, 8)))
    header = struct.pack(">II", 50_000, 50_000)
    at = small.index(b"IHDR")

    ihdr = b"IHDR" + header + small[at + 12 : at + 17]
    bomb = small[:at] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + small[at + 21 :]
    with pytest.raises(DataError, match="which Pillow refuses; make it smaller"):
        decode(bomb)


def test_channels_are_matched(oracle):
    assert match_channels(oracle.small("RGB"), 1).mode == "L"
    assert match_channels(oracle.small("RGBA"), 3).mode == "RGB"
    with pytest.raises(DataError, match="3 channels came where 4 were wanted"):
        match_channels(oracle.small("RGB"), 4)
