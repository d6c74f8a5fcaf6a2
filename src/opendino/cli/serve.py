# SPDX-License-Identifier: Apache-2.0
"""`opendino serve`: features over HTTP."""

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

        from opendino.serve.app import ServeConfig
        from opendino.serve.running import serve
    except ImportError as error:
        if (error.name or "").startswith("opendino"):
            raise
        raise ConfigError(f"opendino serve: {error.name} cannot be imported; pip install 'opendino[serve]'") from None
    from opendino import logs
    from opendino.cli._decoding import decoding_of
    from opendino.config import load

    logs.setup()
    config = load(ServeConfig, None, words, decoding_of(names[0]))
    serve(names[0], config, lambda address: print(f"{address} (Ctrl-C stops it)", flush=True))
    return 0
