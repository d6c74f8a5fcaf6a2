# SPDX-License-Identifier: Apache-2.0
from PIL import Image

from opendino.data.datasets import open_dataset


def test_an_image_is_a_data_set_of_one(tmp_path):
    Image.new("RGB", (7, 5), (10, 20, 30)).save(tmp_path / "A.PNG")
    dataset = open_dataset(tmp_path / "A.PNG", channels=1)
    assert (len(dataset), dataset.targets, dataset.label(0), dataset.classes) == (1, None, None, [])
    assert dataset.identify(0) == str(dataset.read(0)) == str(tmp_path / "A.PNG")
    assert dataset.image(0).size == (7, 5)
    assert dataset.image(0).mode == "L"
