# SPDX-License-Identifier: Apache-2.0
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.curate._sources import entries_of
from opendino.data.datasets.pointers import PointerDataset
from opendino.errors import DataError


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, values):
    with tarfile.open(path, "w") as archive:
        for value in values:
            member = tarfile.TarInfo(f"a/{value}.png")
            data = png(value)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            text = tarfile.TarInfo(f"a/{value}.json")
            archive.addfile(text, io.BytesIO())


def shades(source):
    entries = list(entries_of(str(source)))
    columns = {"source": [entry[1] for entry in entries], "key": [entry[2] for entry in entries]}
    images = PointerDataset.of(pa.table(columns))
    return [images.image(row).getpixel((0, 0))[0] for row in range(len(images))], [entry[3] for entry in entries]


def test_a_tar_is_read_in_place(tmp_path):
    write_tar(tmp_path / "b.tar", [7, 8])
    write_tar(tmp_path / "a.tar", [5])
    assert shades(tmp_path / "b.tar") == ([7, 8], ["", ""])
    assert shades(tmp_path)[0] == [5, 7, 8]
    assert shades(tmp_path / "*.tar")[0] == [5, 7, 8]


def test_folders_and_lists(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(png(int(path.stem)))
    assert shades(tmp_path / "all") == ([1, 2], ["cat", "dog"])
    (tmp_path / "list.txt").write_text("all/dog/2.png\nall/cat/1.png\n")
    assert shades(tmp_path / "list.txt")[0] == [2, 1]


def test_parquet_shards(tmp_path):
    for number in (0, 1):
        table = pa.table({"image": [png(10 * number + row) for row in range(3)], "label": [2, 0, 1]})
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    assert shades(tmp_path / "train-*.parquet") == ([0, 1, 2, 10, 11, 12], ["2", "0", "1"] * 2)
    assert shades(tmp_path / "train-1.parquet")[0] == [10, 11, 12]


def test_a_saved_data_set_of_hugging_face(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    table = pa.table({"image": [{"bytes": png(7 * row), "path": None} for row in range(4)], "label": [1, 0, 1, 1]})
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": names}))
    assert shades(folder) == ([0, 7, 14, 21], ["dog", "cat", "dog", "dog"])


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [png(3), png(4)]}), tmp_path / "data" / "train.parquet")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert shades("hf:owner/name")[0] == [3, 4]
    assert asked == ["owner/name"]
    (tmp_path / "more").mkdir()
    pq.write_table(pa.table({"image": [png(3)]}), tmp_path / "more" / "test.parquet")
    with pytest.raises(DataError, match="Parquet files in 2 folders"):
        shades("hf:owner/name")

    def lost(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lost)
    with pytest.raises(DataError, match="check the name and the network"):
        shades("hf:owner/name")


def test_what_a_tar_only_says_it_holds_is_passed_over(tmp_path):
    """Sparse members, whose bytes in the tar are not their own, and sizes beyond the end; labels are taken along."""
    picture = io.BytesIO()
    Image.new("L", (8, 8), 9).save(picture, "png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in (("a.png", picture.getvalue()), ("a.cls", b"3"), ("b.png", picture.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        sparse = tarfile.TarInfo("sparse.png")
        sparse.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(sparse)
        long = tarfile.TarInfo("long.png")
        long.size = 10**9
        archive.fileobj.write(long.tobuf())
    found = [(key.split()[1], label) for _, _, key, label in entries_of(str(tmp_path / "x.tar"))]
    assert found == [("a.png", "3"), ("b.png", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"], "the folder that is listed stays as it is"


def test_a_compressed_tar_is_told(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(DataError, match="a compressed one has to be unpacked"):
        list(entries_of(str(tmp_path / "x.tar")))
