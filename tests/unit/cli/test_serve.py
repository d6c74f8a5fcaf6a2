# SPDX-License-Identifier: Apache-2.0
import importlib.util
import socket

import pytest

from opendino.cli import serve
from opendino.errors import ConfigError

PRESENT = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "python_multipart"))


def test_a_model_is_wanted():
    with pytest.raises(ConfigError, match="name a model"):
        serve.main([])


@pytest.mark.skipif(PRESENT, reason="the server's packages are installed")
def test_what_to_install_is_said():
    with pytest.raises(ConfigError, match=r"opendino\[serve\]"):
        serve.main(["m"])


@pytest.mark.skipif(not PRESENT, reason="fastapi, uvicorn or python-multipart is not installed")
def test_strangers_need_a_token():
    with pytest.raises(ConfigError, match="give token=SECRET"):
        serve.main(["m", "host=0.0.0.0"])


@pytest.mark.skipif(not PRESENT, reason="fastapi, uvicorn or python-multipart is not installed")
def test_an_address_that_cannot_be_had_is_said_before_the_model_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on .*give another host= or port="):
            serve.main(["no model", f"port={port}"])
    with pytest.raises(ConfigError, match="cannot be listened on"):
        serve.main(["no model", "port=99999999"])
