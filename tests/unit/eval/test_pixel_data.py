# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.errors import DataError
from opendino.eval._pixel_data import guess, open_pairs


def picture(path, value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), (value,) * 3 if mode == "RGB" else value).save(path)


def mark(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)


def values(pairs):
    return [int(pairs.target(i)[0, 0]) for i in range(len(pairs))]


def test_folders_match_by_stem_whatever_the_suffix(tmp_path):
    for i in range(3):
        picture(tmp_path / "images" / "sub" / f"{i}.jpg")
        mark(tmp_path / "masks" / "sub" / f"{i}.png", i)
    np.save(tmp_path / "masks" / "sub" / "1.npy", np.full((4, 6), 7.5, np.float32))
    (tmp_path / "masks" / "sub" / "1.png").unlink()
    found = open_pairs(str(tmp_path), "train")
    assert values(found) == [0, 7, 2]
    assert found.target(1).dtype == np.float32
    assert found.image(0).size == (6, 4)
    (tmp_path / "masks" / "sub" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.jpg: has no map .*sub/2\.png"):
        open_pairs(str(tmp_path), "train")


def test_parquet(tmp_path):
    def encoded(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = {"id": ["a", "b"], "image": [encoded(0)] * 2, "mask": [encoded(3), encoded(5)]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    found = open_pairs(str(tmp_path / "x.parquet"), "val")
    assert values(found) == [3, 5]
    assert found.pairs[1].name.endswith("x.parquet: b")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="has the columns id; 'image' and 'mask' were wanted"):
        open_pairs(str(tmp_path / "y.parquet"), "val")


def test_published_layouts(tmp_path):
    ade = tmp_path / "ade"
    for folder, value in (("training", 1), ("validation", 2)):
        picture(ade / "images" / folder / "x.jpg")
        mark(ade / "annotations" / folder / "x.png", value)
    assert guess(ade) == "ade20k"
    assert values(open_pairs(str(ade), "train")) == [1]
    assert values(open_pairs(str(ade), "val")) == [2]

    voc = tmp_path / "voc"
    for name, value in (("p", 4), ("q", 5)):
        picture(voc / "JPEGImages" / f"{name}.jpg")
        mark(voc / "SegmentationClass" / f"{name}.png", value)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("q\n")
    assert values(open_pairs(str(voc), "val")) == [5]
    with pytest.raises(DataError, match=r"train\.txt: is missing"):
        open_pairs(str(voc), "train")

    city = tmp_path / "city"
    for name in ("a_0", "a_1"):
        picture(city / "leftImg8bit" / "val" / "a" / f"{name}_leftImg8bit.png")
        mark(city / "gtFine" / "val" / "a" / f"{name}_gtFine_labelIds.png", 26)
    mark(city / "gtFine" / "val" / "a" / "a_1_gtFine_labelTrainIds.png", 13)
    assert values(open_pairs(str(city), "val")) == [26, 13]

    picture(tmp_path / "nyu" / "i" / "0.jpg")
    mark(tmp_path / "nyu" / "d" / "0.png", 9)
    (tmp_path / "nyu" / "test.txt").write_text("/i/0.jpg /d/0.png 518.8\ni/1.jpg None 721.5\n")
    assert values(open_pairs(str(tmp_path / "nyu" / "test.txt"), "val")) == [9]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_pairs(str(tmp_path / "none"), "train")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"a folder 'masks' .* were wanted, and it holds pictures"):
        open_pairs(str(tmp_path), "train")
    with pytest.raises(DataError, match="there is no layout 'coco'"):
        open_pairs(str(tmp_path), "train", "coco")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no image with a map"):
        open_pairs(str(tmp_path), "train")
    picture(tmp_path / "images" / "0.png")
    picture(tmp_path / "masks" / "0.png")
    with pytest.raises(DataError, match="one number a pixel was wanted"):
        open_pairs(str(tmp_path), "train").target(0)
    (tmp_path / "masks" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="its map cannot be read"):
        open_pairs(str(tmp_path), "train").target(0)
