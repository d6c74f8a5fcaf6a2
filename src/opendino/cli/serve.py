# SPDX-License-Identifier: Apache-2.0
"""`opendino serve`: features over HTTP."""

import contextlib
import socket

from opendino.cli._words import split
from opendino.errors import ConfigError

SUMMARY = "features, neighbours and PCA maps over HTTP"
USAGE = """
usage: opendino serve MODEL [index=FEATURES] [port=8000] [key=value ...]

POST /embed     one image as the body, or several as multipart files: vectors as JSON, or ?format=npy
POST /similar   one image; ?k=10: the most similar images of index=FEATURES, a folder of `opendino embed` or search
POST /pca       one image: its PCA map, PNG
GET  /similar?row=12 /pca?row=12 /image/12: the same of an image of the index, and the image itself
GET  /health /metrics (Prometheus) /docs (OpenAPI) / (a page to drop an image on)

Requests that come together go through the model together; when the queue is full the answer is 429. Only this machine
is listened to unless host= says otherwise; then give a token. Needs pip install 'opendino[serve]'.

Some settings:
  host=0.0.0.0 token=SECRET embed.features=[patch_mean] embed.size=518 embed.device=cuda
  batching.batch=16 batching.wait_ms=5 batching.queue=64
  limits.bytes=33554432 limits.pixels=50000000 limits.images=32 limits.seconds=60
"""


def main(argv: list[str]) -> int:
    """Serve until stopped."""
    names, words = split(argv, most=1)
    if not names:
        raise ConfigError("opendino serve: name a model; see --help")
    try:
        import python_multipart  # noqa: F401  # pyrefly: ignore[missing-import]
        import uvicorn  # pyrefly: ignore[missing-import]

        from opendino.serve.app import ServeConfig, make_app
    except ImportError as error:
        if (error.name or "").startswith("opendino"):
            raise
        raise ConfigError(f"opendino serve: {error.name} cannot be imported; pip install 'opendino[serve]'") from None
    from opendino import logs
    from opendino.cli._decoding import decoding_of
    from opendino.config import load

    logs.setup()
    config = load(ServeConfig, None, words, decoding_of(names[0]))
    if config.host not in ("127.0.0.1", "localhost", "::1") and not config.token:
        raise ConfigError(f"host = {config.host}: others can reach the server; give token=SECRET as well")
    with _listening(config.host, config.port) as taken:
        app = make_app(names[0], config)
        print(f"http://{config.host}:{config.port}/ (Ctrl-C stops it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=5))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and hands it on
            server.run(sockets=[taken])
    return 0


def _listening(host: str, port: int) -> socket.socket:
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
