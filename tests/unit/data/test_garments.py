# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import pytest

from opendino.data import garments
from opendino.data.datasets import open_dataset
from opendino.data.garments import HOME, PlacementConfig, place
from opendino.errors import ConfigError

WHITE = np.full((28, 28), 255, dtype=np.uint8)
# Of the pixels as they stand in Fashion-MNIST's own files, selected by the rule of assets/garments/README.md.
PIXELS = {
    "train": "e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883",
    "test": "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
}
EACH = {"train": 1000, "test": 200}


def square(canvas):
    """Top, left, height, width and grey value of the one bright rectangle."""
    rows, columns = np.nonzero(canvas)
    (value,) = np.unique(canvas[canvas > 0])
    top, left = rows.min(), columns.min()
    assert (canvas[top : rows.max() + 1, left : columns.max() + 1] == value).all()
    return top, left, np.ptp(rows) + 1, np.ptp(columns) + 1, value


def test_a_white_garment_becomes_a_square_of_the_drawn_place_size_and_brightness():
    # Drawn from numpy's generator with the words (0, row) for train and (1, row) for test: size, factor, top and left.
    assert square(place(WHITE, "train", 0)) == (5, 2, 33, 33, 162)
    assert square(place(WHITE, "train", 1)) == (11, 3, 28, 28, 199)
    assert square(place(WHITE, "test", 0)) == (6, 0, 28, 28, 249)


def test_squares_fill_the_ranges_and_stay_on_the_canvas():
    squares = np.array([square(place(WHITE, "train", row)) for row in range(400)])
    top, left, height, width, value = squares.T
    assert (height == width).all()
    assert (height.min(), height.max()) == (22, 34)
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == 40
    assert 127 <= value.min() <= 132
    assert 250 <= value.max() <= 255
    # Places are uniform given the size: the mean share of the free room is a half.
    assert abs((top / (40 - height)).mean() - 0.5) < 0.05
    assert abs(np.corrcoef(top / (40 - height), left / (40 - height))[0, 1]) < 0.15


def test_placement_depends_on_part_and_row_alone():
    garment = np.arange(784, dtype=np.uint64).reshape(28, 28).astype(np.uint8)
    assert (place(garment, "train", 7) == place(garment, "train", 7)).all()
    assert (place(garment, "train", 7) != place(garment, "train", 8)).any()
    assert (place(garment, "train", 7) != place(garment, "test", 7)).any()


def test_nothing_moves_where_the_ranges_leave_no_choice():
    config = PlacementConfig(canvas=28, size=(28, 28), brightness=(1.0, 1.0))
    garment = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert (place(garment, "test", 3, config) == garment).all()


@pytest.mark.parametrize("wrong", [{"size": (22, 41)}, {"size": (30, 22)}, {"brightness": (0.0, 1.0)}])
def test_impossible_ranges(wrong):
    with pytest.raises(ConfigError, match="garments"):
        PlacementConfig(**wrong)


@pytest.mark.parametrize("part", garments.PARTS)
def test_shipped_images_are_the_original_ones_and_balanced(part):
    dataset = open_dataset(HOME / f"{part}.parquet", channels=1)
    pixels = np.stack([np.asarray(dataset.image(row)) for row in range(len(dataset))])
    assert pixels.shape == (10 * EACH[part], 28, 28)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == PIXELS[part]
    assert np.bincount(dataset.targets).tolist() == [EACH[part]] * 10
    assert dataset.classes[0] == "T-shirt/top"
    assert dataset.classes[9] == "Ankle boot"


def test_shipped_files_are_small_and_carry_their_licence():
    assert all((HOME / f"{part}.parquet").stat().st_size < 5_000_000 for part in garments.PARTS)
    licence = (HOME / "LICENSE").read_text()
    assert "MIT License" in licence
    assert "2017 Zalando SE" in licence
    assert "make_garments.py" in (HOME / "README.md").read_text()


def test_written_files_hold_the_placed_garments_and_their_labels(tmp_path):
    files = garments.write(tmp_path / "data", limit=30)
    for part, path in files.items():
        shipped, written = (open_dataset(file, channels=1) for file in (HOME / f"{part}.parquet", path))
        assert len(written) == 30
        assert (written.targets == shipped.targets[:30]).all()
        assert written.classes == shipped.classes
        assert f"(id {part}-" in written.identify(5)
        for row in (0, 29):
            wanted = place(np.asarray(shipped.image(row)), part, row)
            assert (np.asarray(written.image(row)) == wanted).all()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test.parquet", "train.parquet"]


def test_written_files_are_the_same_every_time(tmp_path):
    first, second = (garments.write(tmp_path / name, limit=5)["train"].read_bytes() for name in "ab")
    assert first == second
