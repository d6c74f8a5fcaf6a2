# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest

from opendino.checkpoint.weights import save_weights
from opendino.config import load
from opendino.curate import pipeline
from opendino.data.datasets import open_dataset
from opendino.embed import EmbedConfig, embed
from opendino.errors import DataError
from opendino.models.vision_transformer import VisionTransformer


def test_a_curation_is_not_taken_for_images_and_its_manifest_is_named(picture_folder, tmp_path):
    words = ["embed.model=thumbnail", "cluster.levels=[2]", "balance.size=4", "index.rows=50"]
    out = tmp_path / "curated"
    pipeline.run(
        load(pipeline.CurateConfig, None, [f"index.sources=[{picture_folder}]", f"out={out}", *words]), "index"
    )
    with pytest.raises(DataError, match="name the images themselves, or, after a curation, its manifest"):
        open_dataset(out)
    pipeline.run(load(pipeline.CurateConfig, None, [f"index.sources=[{picture_folder}]", f"out={out}", *words]))
    for folder in (out, out / "manifest"):
        with pytest.raises(
            DataError, match=r"is what opendino curate wrote; the images .* named by .*manifest\.parquet$"
        ):
            open_dataset(folder)
    assert len(open_dataset(out / "manifest" / "manifest.parquet")) == 4
    with pytest.raises(DataError, match="holds what opendino embed or curate made of images"):
        open_dataset(out / "cluster")


def test_features_and_runs_are_not_taken_for_images(picture_folder, tiny_run, tmp_path):
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    model = save_weights(backbone, tmp_path / "w")
    for kind in ("parquet", "npy"):
        done = embed(str(model), str(picture_folder), tmp_path / kind, EmbedConfig(device="cpu", format=kind))
        with pytest.raises(DataError, match="holds what opendino embed or curate made of images"):
            open_dataset(done.folder)
    with pytest.raises(DataError, match="is a run of training and no images"):
        open_dataset(tiny_run)


@pytest.mark.parametrize("name", ["plan.json", "run.json"])
@pytest.mark.parametrize("said", [{"made_by": "me"}, [1], "opendino", None])
def test_files_of_others_by_these_names_are_nothing_to_us(picture_folder, tmp_path, name, said):
    folder = tmp_path / "mine"
    shutil.copytree(picture_folder, folder)
    (folder / name).write_text("{" if said is None else json.dumps(said))
    assert len(open_dataset(folder)) == len(open_dataset(picture_folder))
    np.save(folder / "index.npy", np.zeros((4, 4, 3)))
    assert len(open_dataset(folder)) == len(open_dataset(picture_folder)) + 1
