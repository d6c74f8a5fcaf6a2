# SPDX-License-Identifier: Apache-2.0
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

for name in ("fastapi", "python_multipart"):
    pytest.importorskip(name, reason=f"{name} is not installed")
if not (find_spec("httpx2") or find_spec("httpx")):
    pytest.skip("neither httpx2 nor httpx is installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

from opendino.checkpoint.weights import save_weights  # noqa: E402
from opendino.config import load  # noqa: E402
from opendino.embed import EmbedConfig, embed, matrix  # noqa: E402
from opendino.errors import ConfigError  # noqa: E402
from opendino.models.vision_transformer import VisionTransformer  # noqa: E402
from opendino.serve.app import ServeConfig, make_app  # noqa: E402


@pytest.fixture
def client(served):
    from starlette.testclient import TestClient

    words = [f"index={served / 'features'}", "embed.device=cpu", "limits.images=3", "limits.bytes=100000",
             "limits.pixels=10000", "batching.queue=8"]  # fmt: skip
    with TestClient(make_app(str(served / "w"), load(ServeConfig, None, words))) as client:
        yield client


def files(served):
    return sorted((served / "images").iterdir())


def test_vectors_are_those_of_the_embedded_folder(client, served):
    wanted = matrix(served / "features")
    one = client.post("/embed", content=files(served)[4].read_bytes())
    assert one.status_code == 200, one.text
    assert one.json()["feature"] == "patch_mean"
    np.testing.assert_allclose(one.json()["vectors"], wanted[4:5], atol=1e-5)
    several = [("images", (path.name, path.read_bytes(), "image/png")) for path in files(served)[:3]]
    found = np.load(BytesIO(client.post("/embed?format=npy", files=several).content))
    np.testing.assert_allclose(found, wanted[:3], atol=1e-5)


def test_neighbours_and_pictures(client, served):
    hits = client.post("/similar?k=2", content=files(served)[4].read_bytes()).json()["hits"]
    assert hits[0]["row"] == 4
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(hits) == 2
    own = client.get("/similar?row=4&k=9").json()["hits"]
    assert own[:1] == [hit | {"score": pytest.approx(hit["score"], abs=1e-5)} for hit in hits[1:]]
    assert {hit["row"] for hit in own} == set(range(10)) - {4}, "an image of the index is not told that it is itself"
    map_of_row = Image.open(BytesIO(client.get("/pca?row=4").content))
    assert max(map_of_row.size) == 512
    assert Image.open(BytesIO(client.get("/image/4?side=10").content)).size == (10, 10)
    thumbnail = Image.open(BytesIO(client.get("/image/4").content))
    assert thumbnail.size == (24, 24)
    made = Image.open(BytesIO(client.post("/pca", content=files(served)[4].read_bytes()).content))
    assert max(made.size) == 512


def big(width, height):
    buffer = BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("send", "status"),
    [
        ({"content": b""}, 400),
        ({"content": b"no image"}, 422),
        ({"content": big(8, 8)[:45]}, 422),
        ({"content": big(200, 200)}, 413),
        ({"content": b"x" * 200_000}, 413),
        ({"content": lambda: iter([b"x" * 60_000] * 3)}, 413),
        ({"files": [("a", ("a", b"no", "image/png"))]}, 422),
        ({"files": [("a", ("a", b"x", "image/png"))] * 4}, 413),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"data": {"a": "words"}, "headers": {}}, 422),
    ],
)
@pytest.mark.parametrize("path", ["/embed", "/similar", "/pca"])
def test_bad_bodies_are_the_sender_s_fault(client, path, send, status):
    content = send.get("content")
    answer = client.post(path, **(send | ({"content": content()} if callable(content) else {})))
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_bad_words(client):
    assert client.post("/embed?format=xml", content=b"x").status_code == 422
    assert client.post("/similar?k=0", content=b"x").status_code == 422
    for row in (99, -1, 2**70):
        for address in (f"/image/{row}", f"/similar?row={row}", f"/pca?row={row}"):
            answer = client.get(address)
            assert answer.status_code == 404
            said = answer.json()["detail"]
            assert said.startswith(f"row {row} is not in the index: it has 10 of the rows 0 to 9;")
    for address in ("/image/x", "/similar?row=x", "/similar", "/image/1?side=0", "/similar?row=1&k=1001"):
        assert client.get(address).status_code == 422
    assert client.get("/nothing").status_code == 404


def test_an_image_that_has_gone_is_not_found(client, served, tmp_path, monkeypatch):
    dataset = client.app.state.service.index.dataset
    monkeypatch.setattr(dataset, "root", tmp_path)
    for address in ("/image/3", "/pca?row=3"):
        answer = client.get(address)
        assert answer.status_code == 404
        assert "the image of row 3 cannot be opened" in answer.json()["detail"]
    assert client.get("/similar?row=3").status_code == 200


def test_images_are_decoded_as_those_of_the_index(served, tmp_path):
    from starlette.testclient import TestClient

    deep = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "list.txt").write_text("deep.png\n")
    config = EmbedConfig(features=("patch_mean",), size=16, device="cpu", value_range=(0.0, 4095.0))
    wanted = matrix(embed(str(served / "w"), str(tmp_path / "list.txt"), tmp_path / "features", config).folder)
    data = (tmp_path / "deep.png").read_bytes()
    for words in (
        [f"index={tmp_path / 'features'}"],
        ["value_range=[0,4095]", "embed.features=[patch_mean]", "embed.size=16"],
    ):
        settings = load(ServeConfig, None, [*words, "embed.device=cpu"])
        with TestClient(make_app(str(served / "w"), settings)) as client:
            np.testing.assert_allclose(client.post("/embed", content=data).json()["vectors"], wanted, atol=1e-5)


def test_what_the_index_has_answered_is_not_asked_again(served):
    words = [f"index={served / 'features'}", "embed.device=cpu", "embed.size=32", "decoder=pillow"]
    with pytest.raises(
        ConfigError, match=r"embed\.size, decoder: with index= images are embedded as those of the index"
    ):
        make_app(str(served / "w"), load(ServeConfig, None, words))


def test_another_model_than_that_of_the_index_is_refused(served, tmp_path):
    torch.manual_seed(1)
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), tmp_path / "other")
    with pytest.raises(ConfigError, match="has other weights than the model that embedded"):
        make_app(str(tmp_path / "other"), load(ServeConfig, None, [f"index={served / 'features'}", "embed.device=cpu"]))


def test_state(client, served):
    assert client.get("/health").json() == {
        "status": "ok", "model": str(served / "w"), "feature": "patch_mean", "index": 10,
    }  # fmt: skip
    client.post("/embed", content=b"no")
    client.get("/secret/path")
    counts = client.get("/metrics").text
    assert 'opendino_requests_total{path="/embed",status="422"} 1' in counts
    assert "secret" not in counts
    assert "<title>opendino" in client.get("/").text
    assert "/embed" in client.get("/openapi.json").json()["paths"]


def test_many_at_once_get_an_answer_or_a_no(client, served):
    data = files(served)[0].read_bytes()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.post("/embed", content=data), range(60)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 429}
    assert 200 in codes
    vectors = [answer.json()["vectors"] for answer in answers if answer.status_code == 200]
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[0], np.shape(vectors)), atol=1e-5)
    assert client.get("/metrics").text.splitlines()[-1] == "opendino_waiting_images 0"


def test_images_that_are_being_decoded_count_as_waiting(client, served):
    service, data = client.app.state.service, files(served)[0].read_bytes()
    service.opening = 8  # the queue of this server
    for path in ("/embed", "/similar", "/pca"):
        refused = client.post(path, content=data)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
    for path in ("/image/4", "/pca?row=4"):  # those of the index are decoded too
        assert client.get(path).status_code == 429, path
    service.opening = 7
    assert client.get("/image/4").status_code == 200
    assert client.post("/embed", content=data).status_code == 200
    assert service.opening == 7
    several = [("a", ("a", data, "image/png"))] * 2
    assert client.post("/embed", files=several).status_code == 429


def test_a_token_is_asked_for(served):
    from starlette.testclient import TestClient

    config = load(ServeConfig, None, ["token=secret", "embed.device=cpu"])
    with TestClient(make_app(str(served / "w"), config)) as client:
        data = files(served)[0].read_bytes()
        assert client.post("/embed", content=data).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.post("/embed", content=data, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.post("/similar", content=data, headers={"Authorization": "Bearer secret"}).status_code == 404


def test_one_feature_is_served():
    with pytest.raises(ConfigError, match="one feature"):
        load(ServeConfig, None, ["embed.features=[cls,patch_mean]"])
