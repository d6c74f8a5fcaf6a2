# SPDX-License-Identifier: Apache-2.0
"""A running server: under fifty clients, and its page in a browser."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

for name in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(name, reason=f"{name} is not installed")

from opendino.checkpoint.weights import save_weights  # noqa: E402
from opendino.embed import EmbedConfig, embed  # noqa: E402
from opendino.models.vision_transformer import VisionTransformer  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
FLAT = 64.0  # MiB that a busy server may grow by: fifty images under way, and what allocators keep


@pytest.fixture(scope="module")
def load_script():
    specification = importlib.util.spec_from_file_location("serve_load", ROOT / "benchmarks" / "serve_load.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("served") / "w"
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory of processes is read from /proc")
def test_fifty_clients_get_an_answer_or_a_no(load_script, model):
    found = load_script.measure(model, 50, 5.0, "batching.queue=16")
    assert set(found["answers"]) <= {200, 429}
    assert found["answers"][200] > 0
    assert found["after"] - found["before"] < FLAT


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium was found to open the page with")
def test_the_page_shows_the_map_and_the_neighbours(load_script, model, picture_folder, tmp_path):
    features = tmp_path / "features"
    embed(model, str(picture_folder / "class0"), features, EmbedConfig(size=16, device="cpu"))
    with load_script.serving(model, f"index={features}", "embed.device=cpu") as (port, _):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
                   f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
        address = f"http://127.0.0.1:{port}/?row=4"
        done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-500:]
    assert 'alt="image 4 of the index"' in done.stdout
    assert 'alt="principal components of its patches"' in done.stdout
    found = re.findall(r"<figcaption>(-?[\d.]+) ([\w.]+)</figcaption>", done.stdout)
    names = sorted(path.name for path in (picture_folder / "class0").iterdir())
    assert {name for _, name in found} == set(names) - {names[4]}
    scores = [float(score) for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] <= 1
