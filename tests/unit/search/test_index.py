# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.data import fast
from opendino.data.photo import Photo
from opendino.embed import EmbedConfig, embed, matrix
from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.neighbours.exact import SearchConfig
from opendino.search import build, open_index
from opendino.stages.folder import alone


def brute_force(vectors, queries, k):
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = queries.astype(np.float64) @ vectors.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize("feature", ["", "patch_mean"])
def test_the_exact_search_is_exact(embedded, tmp_path, feature):
    index = build(embedded, tmp_path / "index", feature)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(5, 64)).astype(np.float32)
    scores, places = index.search(torch.from_numpy(queries) * 7, 6)
    wanted = brute_force(matrix(embedded, feature), queries, 6)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    # Copies are equally near: the positions have to have the cosines, in whatever order.
    bank = matrix(embedded, feature)
    bank, units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    np.testing.assert_allclose((bank[places] * units[:, None]).sum(-1), wanted, atol=1e-5)
    assert all(len(set(row)) == 6 for row in places.tolist())


def test_an_image_finds_itself_and_its_copy(embedded):
    index = open_index(embedded)
    picture = index.dataset.image(0)
    hits = index.hits(index.vectors_of([picture], index.embedder(device="cpu")), 2)[0]
    # Equal bytes in other batches: which of the two is nearer is a matter of rounding.
    assert {"/".join(hit.path.split("/")[-2:]) for hit in hits} == {"class0/00.png", "class3/copy00.png"}
    assert [hit.score for hit in hits] == pytest.approx([1, 1], abs=1e-5)
    place = index.position_of(0)
    left = index.hits(index.vectors.block(place, place + 1), 1, leave_out=[place])[0]
    assert left[0].path.endswith("class3/copy00.png")


@pytest.mark.parametrize("decoder", ["pillow", "fast"])
def test_a_photograph_is_decoded_as_the_others_were(tmp_path, decoder):
    if decoder == "fast":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize((200, 150)).save(images / f"{number}.jpg", quality=80)
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1)
    save_weights(backbone, tmp_path / "w")
    config = EmbedConfig(size=16, device="cpu", decoder=decoder)
    index = open_index(embed(str(tmp_path / "w"), str(images), tmp_path / "features", config).folder)
    assert index.decoder == decoder
    taken = index.open_image(images / "1.jpg", 3)
    assert isinstance(taken, Photo) == (decoder == "fast")
    best = index.hits(index.vectors_of([taken], index.embedder(device="cpu")), 1)[0][0]
    assert best.row == 1
    assert best.score == pytest.approx(1, abs=1e-6)


def test_where_the_fast_decoder_is_missing_pillow_decodes_with_a_warning(embedded, tmp_path, monkeypatch, caplog):
    index = build(embedded, tmp_path / "index")
    index.about["decoder"] = "fast"
    monkeypatch.setattr(fast, "missing_package", lambda: "simplejpeg")
    assert index.decoder == "pillow"
    assert "decoded by the fast decoder, which is not installed here" in caplog.text


def test_an_index_that_names_no_decoder_says_so_once_and_what_to_do(embedded, tmp_path, caplog):
    out = tmp_path / "index"
    build(embedded, out)
    about = json.loads((out / "index.json").read_text())
    del about["decoder"]
    (out / "index.json").write_text(json.dumps(about))
    index = open_index(out)
    assert not caplog.text
    assert (index.decoder, index.decoder) == ("pillow", "pillow")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(f"opendino search build EMBEDDED out={out} makes it anew")
    caplog.clear()
    build(embedded, out)
    assert open_index(out).decoder in ("pillow", "fast")
    assert not caplog.text


def test_features_of_before_there_was_a_fast_decoder_were_decoded_by_pillow(embedded, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(embedded, folder)
    for name in ("plan.json", "done.json"):
        said = json.loads((folder / name).read_text())
        del said.get("plan", said)["parameters"]["decoder"]
        (folder / name).write_text(json.dumps(said))
    assert build(folder).about["decoder"] == "pillow"


def test_two_builders_of_one_index_do_not_meet(embedded, tmp_path):
    out = tmp_path / "index"
    with alone(out), pytest.raises(ConfigError, match="another process is writing here"):
        build(embedded, out)
    with alone(embedded), pytest.raises(ConfigError, match="another process is writing here"):
        build(embedded, feature="patch_mean")
    build(embedded, out)
    assert {path.name for path in out.iterdir()} == {"index.json", "images.parquet", "vectors.npy"}


def test_rows_count_images_that_could_not_be_read(embedded):
    index = open_index(embedded)
    lost = next(row for row in range(43) if row not in index.table["row"].to_pylist())
    with pytest.raises(DataError, match=f"row {lost} is not in the index"):
        index.position_of(lost)
    assert index.table["row"][index.position_of(lost + 1)].as_py() == lost + 1


def test_an_index_is_made_once(embedded, tmp_path):
    out = tmp_path / "index"
    build(embedded, out)
    before = (out / "vectors.npy").stat().st_mtime_ns
    build(embedded, out)
    assert (out / "vectors.npy").stat().st_mtime_ns == before
    assert build(embedded, out, "patch_mean").about["feature"] == "patch_mean"


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_approximate_engines_find_what_the_exact_one_finds(embedded, tmp_path, engine):
    build(embedded, tmp_path / engine, "patch_mean", SearchConfig(engine=engine, nprobe=100))
    index, exact = open_index(tmp_path / engine), build(embedded, tmp_path / "exact", "patch_mean")
    queries = exact.vectors.block(0, 10)
    torch.testing.assert_close(index.search(queries, 3)[0], exact.search(queries, 3)[0])


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="faiss is installed")
def test_without_faiss_the_error_says_what_to_install(embedded, tmp_path):
    with pytest.raises(ConfigError, match=r"opendino\[faiss\]"):
        build(embedded, tmp_path / "hnsw", search=SearchConfig(engine="hnsw"))


def test_what_does_not_fit(embedded, tmp_path):
    index = open_index(embedded)
    with pytest.raises(DataError, match="a query of 3 numbers"):
        index.search(torch.ones(1, 3))
    with pytest.raises(DataError, match="has no direction"):
        index.search(torch.zeros(1, 64))
    with pytest.raises(DataError, match="there are cls, patch_mean"):
        build(embedded, tmp_path / "x", "patches")
    with pytest.raises(DataError, match="is no index and no folder of features"):
        open_index(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that are no index"):
        build(embedded, tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": "opendino index 0"}))
    with pytest.raises(ConfigError, match="another version"):
        open_index(tmp_path)
    assert len(index.hits(torch.ones(1, 64), 1000)[0]) == len(index)


@pytest.mark.parametrize("file", ["index.json", "vectors.npy", "images.parquet"])
def test_a_damaged_index_says_to_build_it_again(embedded, tmp_path, file):
    index = build(embedded, out=tmp_path / "damaged").folder
    (index / file).write_bytes((index / file).read_bytes()[:40])
    with pytest.raises(DataError, match=r"search build|build the index again"):
        open_index(index)
