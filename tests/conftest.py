# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures; jaxtyping's shapes are checked by beartype in every test of the package."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
from jaxtyping import install_import_hook

install_import_hook("opendino", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

# The same examples each time, so that a change is judged by what it changes; `pytest --hypothesis-profile=wide` draws
# others (CONTRIBUTING.md).
settings.register_profile("fixed", derandomize=True)
settings.register_profile("wide", print_blob=True)
settings.load_profile("fixed")

TINY = """
student.preset=vit_nano4 student.depth=2 student.embed_dim=32 student.num_heads=2
student.drop_path_rate=0.2 student.init_values=0.1
crops.global_size=16 crops.local_size=8 crops.local_number=2
dino.centering=centering dino.prototypes=32 dino.hidden_dim=32 dino.bottleneck_dim=16
train.batch_size=8 train.iterations=6 train.device=cpu train.threads=1 train.precision=fp32
loader.workers=0 checkpoint.every=2 log.every=1 log.trackers=[] log.picture=false knn.every=0 train.keep_memory=false
"""


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """No checks of shapes and types: tracers do not know sizes, and users give what they like."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images for tests; skips, visibly, where it is missing."""
    folder = Path(os.environ.get("OPENDINO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images not found in {folder}; set OPENDINO_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """Undo `opendino.logs.setup` after a test that ran a verb, or `caplog` sees each record of the next one twice."""
    yield
    logger = logging.getLogger("opendino")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> Path:
    """Forty small pictures of four classes: stripes of a colour that the class decides, with noise."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        label = number % 4
        pixels = np.full((24, 24, 3), 60 + 50 * label)
        pixels[:: label + 2, :, number % 3] += 80
        pixels += rng.integers(-20, 20, pixels.shape)
        folder = root / f"class{label}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_settings() -> list[str]:
    """Settings of the smallest pretraining run: two blocks, milliseconds a step."""
    return TINY.split()


@pytest.fixture(scope="session")
def tiny_run(tiny_settings, picture_folder, tmp_path_factory) -> Path:
    """Folder of the smallest pretraining run, finished; not to be changed."""
    from opendino.config import load
    from opendino.train.config import PretrainConfig
    from opendino.train.pretrain import pretrain

    folder = tmp_path_factory.mktemp("tiny") / "run"
    pretrain(load(PretrainConfig, None, [*tiny_settings, f"data={picture_folder}", f"output_dir={folder}"]))
    return folder


@pytest.fixture
def tiny_words(tiny_settings, picture_folder, tmp_path) -> list[str]:
    """Words of the smallest pretraining run."""
    return [f"data={picture_folder}", f"output_dir={tmp_path / 'run'}", *tiny_settings]
