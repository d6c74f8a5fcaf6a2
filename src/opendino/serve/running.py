# SPDX-License-Identifier: Apache-2.0
"""`serve`: the server on an address of this machine, until it is stopped; what it answers is in `app.py`."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn  # pyrefly: ignore[missing-import]  an extra

from opendino.errors import ConfigError
from opendino.serve.app import ServeConfig, make_app


def serve(
    model: str, config: ServeConfig | None = None, ready: Callable[[str], object] = lambda _address: None
) -> None:
    """Serve a model until the process is told to stop.

    Args:
        model: anything that `opendino.load` takes.
        config: see `ServeConfig`; None takes its defaults.
        ready: called with the address when the model is open.

    Raises:
        ConfigError: the address cannot be had, or is open to others and has no token.
        CheckpointError: the model cannot be opened.
    """
    config = config or ServeConfig()
    if config.host not in ("127.0.0.1", "localhost", "::1") and not config.token:
        raise ConfigError(f"host = {config.host}: others can reach the server; give token=SECRET as well")
    with listening(config.host, config.port) as taken:
        app = make_app(model, config)
        ready(f"http://{config.host}:{config.port}/")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=5))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and hands it on
            server.run(sockets=[taken])


def listening(host: str, port: int) -> socket.socket:
    """The socket, taken before the model is opened.

    Raises:
        ConfigError: the address cannot be had.
    """
    if not 0 < port < 65536:  # the system would take what is left of it
        raise ConfigError(f"port = {port}: cannot be listened on; give a number from 1 to 65535")
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        taken = socket.socket(kind, socket.SOCK_STREAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended holds it no longer
            taken.bind(address)  # nobody is let in before uvicorn listens
        except OSError:
            taken.close()
            raise
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{host}:{port}: cannot be listened on ({reason}); give another host= or port=") from None
    return taken
