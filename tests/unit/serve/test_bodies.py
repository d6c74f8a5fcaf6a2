# SPDX-License-Identifier: Apache-2.0
from io import BytesIO

import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")

from opendino.errors import ConfigError  # noqa: E402
from opendino.serve.bodies import LimitConfig, open_image  # noqa: E402


def png(width, height):
    buffer = BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_pixels_are_counted_before_they_are_decoded():
    limits = LimitConfig(pixels=100)
    assert open_image(png(10, 10), 3, limits).size == (10, 10)
    data = png(10, 11)
    with pytest.raises(fastapi.HTTPException) as caught:
        open_image(data[:45], 3, limits)  # broken too, which nobody gets to see
    assert caught.value.status_code == 413


@pytest.mark.parametrize("data", [b"no image", b"\x89PNG\r\n\x1a\n", png(9, 9)[:45], b"\x93NUMPY\x01\x00"])
def test_what_is_no_image(data):
    with pytest.raises(fastapi.HTTPException) as caught:
        open_image(data, 3, LimitConfig())
    assert caught.value.status_code == 422


def test_limits_that_are_none():
    with pytest.raises(ConfigError, match="limits"):
        LimitConfig(images=0)
