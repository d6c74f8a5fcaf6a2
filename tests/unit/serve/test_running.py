# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

for name in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(name, reason=f"{name} is not installed")

from opendino.errors import CheckpointError, ConfigError  # noqa: E402
from opendino.serve import ServeConfig, serve  # noqa: E402
from opendino.serve.running import listening  # noqa: E402


def test_strangers_need_a_token():
    with pytest.raises(ConfigError, match="give token=SECRET"):
        serve("m", ServeConfig(host="0.0.0.0"))


def test_the_address_is_taken_before_the_model_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on .*give another host= or port="):
            serve("no model", ServeConfig(port=port))
    with pytest.raises(CheckpointError, match="no model"):
        serve("no model", ServeConfig(port=port))
    with listening("127.0.0.1", port):  # which was given back
        pass


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_what_is_no_port(port):
    with pytest.raises(ConfigError, match="give a number from 1 to 65535"):
        listening("127.0.0.1", port)
