# SPDX-License-Identifier: Apache-2.0
import logging
import time

from opendino.embed._progress import Within, line, watching


def test_the_time_left_follows_from_the_pace():
    assert line(4, 10, 2, 30.0) == "4 of 10 shards, 2 min left"
    assert line(4, 10, 4, 30.0) == "4 of 10 shards, 45 s left"


def test_shards_are_told_as_they_come(tmp_path, caplog):
    (tmp_path / "part-00000.parquet").touch()
    with caplog.at_level(logging.INFO, "opendino"), watching(tmp_path, 3, every=0.01):
        (tmp_path / "part-00001.parquet").touch()
        time.sleep(0.5)
    assert [record.getMessage()[:13] for record in caplog.records] == ["2 of 3 shards"]


def test_images_of_a_long_shard_are_told_but_not_its_end(caplog):
    with caplog.at_level(logging.INFO, "opendino"):
        progress = Within(30, every=0.0)
        for _ in range(3):
            progress.add(10)
        quick = Within(30, every=60.0)
        quick.add(10)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "10 of 30 images of this shard", "20 of 30 images of this shard",
    ]  # fmt: skip
    assert all(record.getMessage().endswith(" s left") for record in caplog.records)
