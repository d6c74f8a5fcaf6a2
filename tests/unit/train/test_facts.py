# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.data.fast import choose_decoder
from opendino.errors import DataError
from opendino.train.facts import DataFacts, Values, look_at_data, look_at_machine


def write(folder, number, pixels, suffix="png"):
    folder.mkdir(exist_ok=True)
    if suffix == "npy":
        np.save(folder / f"{number}.npy", pixels)
    else:
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}")


def grey(height, width):
    return np.zeros((height, width), dtype=np.uint8)


def colour(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pictures", "side", "channels"),
    [
        ([colour(10, 20), colour(30, 40), colour(90, 50)], 30, 3),
        ([grey(10, 20), grey(12, 14)], 11, 1),
        ([grey(8, 8), colour(8, 8)], 8, 3),
    ],
)
def test_looking_at_images(tmp_path, pictures, side, channels):
    for number, pixels in enumerate(pictures):
        write(tmp_path / "images", number, pixels)
    facts = look_at_data(open_dataset(tmp_path / "images"))
    assert facts == DataFacts(len(pictures), side, channels, labelled=False)


def test_arrays_of_many_channels(tmp_path):
    for number in range(3):
        write(tmp_path / "images", number, np.zeros((16, 12, 7), dtype=np.float32), "npy")
    assert look_at_data(open_dataset(tmp_path / "images")) == DataFacts(3, 12, 7, values=Values(0, 0, False))


def test_tiff_of_several_pages_is_one_image_of_several_channels(tmp_path):
    pages = [Image.fromarray(np.full((10, 14), value, dtype=np.uint16)) for value in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert look_at_data(open_dataset(tmp_path)) == DataFacts(1, 10, 6, values=Values(0, 0, True))


@pytest.mark.parametrize("suffix", ["npy", "png", "tif"])
def test_the_values_of_deep_images(tmp_path, suffix):
    for number, top in enumerate((1000, 3500)):
        write(tmp_path / "images", number, np.array([[12, top]] * 3, dtype=np.uint16), suffix)
    assert look_at_data(open_dataset(tmp_path / "images")).values == Values(12, 3500, True)


def test_floats_and_negative_numbers_have_no_range_of_their_own(tmp_path):
    write(tmp_path / "a", 0, np.array([[-1000.0, 300.5]] * 3, dtype=np.float32), "npy")
    assert look_at_data(open_dataset(tmp_path / "a")).values == Values(-1000, 300.5, False)
    write(tmp_path / "b", 0, np.array([[-5, 9]] * 3, dtype=np.int16), "npy")
    assert look_at_data(open_dataset(tmp_path / "b")).values == Values(-5, 9, False)


def test_eight_bits_among_deep_images_leave_the_range_alone(tmp_path):
    write(tmp_path / "images", 0, np.array([[12, 3000]] * 3, dtype=np.uint16), "npy")
    write(tmp_path / "images", 1, np.array([[12, 200]] * 3, dtype=np.uint8), "npy")
    assert look_at_data(open_dataset(tmp_path / "images")).values is None


def test_broken_images_are_looked_past(tmp_path):
    write(tmp_path / "images", 1, colour(9, 9))
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    assert look_at_data(open_dataset(tmp_path / "images")).short_side == 9
    (tmp_path / "images" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the images looked at can be read \(.*0\.png"):
        look_at_data(open_dataset(tmp_path / "images"))


def test_labels_are_seen(picture_folder):
    assert look_at_data(open_dataset(picture_folder)) == DataFacts(40, 24, 3, labelled=True)


def test_this_machine():
    facts = look_at_machine("cpu")
    assert facts.device == "cpu"
    assert facts.cores >= 1
    assert facts.decoder == choose_decoder("auto")
