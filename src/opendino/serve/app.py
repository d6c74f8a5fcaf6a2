# SPDX-License-Identifier: Apache-2.0
"""The addresses of the server.

| address          | takes                              | gives                                                  |
|------------------|------------------------------------|--------------------------------------------------------|
| `POST /embed`    | one image as body, or multipart    | vectors as JSON, or with `?format=npy` as an array     |
| `POST /similar`  | one image; `?k=10`                 | the images of the index most like it                   |
| `POST /pca`      | one image                          | its PCA map, PNG                                       |
| `GET /image/12`  |                                    | a thumbnail of row 12 of the index's images, JPEG      |
| `GET /health`, `/metrics`, `/docs`, `/` | | state, counts, OpenAPI, a page to drop an image on         |

Read next: `bodies.py`, `batching.py`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request, Response  # pyrefly: ignore[missing-import]  an extra
from fastapi.responses import HTMLResponse, JSONResponse  # pyrefly: ignore[missing-import]
from torch import Tensor

from opendino import __version__
from opendino.data.decode import Decoded
from opendino.embed import Embedder, FeatureSettings, open_embedder
from opendino.errors import ConfigError, DataError
from opendino.search import Index, open_index
from opendino.search.page import thumbnail
from opendino.serve.batching import BatchConfig, Batcher, BusyError
from opendino.serve.bodies import LimitConfig, images_of, open_image
from opendino.serve.metrics import Metrics
from opendino.view.pca import PcaConfig, colour_maps, paint, patch_features

_OPEN = ("/health", "/")  # without a token
_SIDE = 512  # pixels of a PCA map


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `opendino serve`.

    Attributes:
        host: address that is listened on; the default is seen by this machine only.
        port: number of the port.
        token: that requests must bring as "Authorization: Bearer TOKEN"; none when empty.
        index: embedded folder or index, for /similar; none when empty.
        embed: which feature, and what the model sees; with an index, that of the index is taken.
        batching: how requests are put together.
        limits: what a request may ask for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    index: str = ""
    embed: FeatureSettings = field(default_factory=FeatureSettings)
    batching: BatchConfig = field(default_factory=BatchConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)

    def __post_init__(self) -> None:
        if len(self.embed.features) != 1 or len(self.embed.layers) > 1 or self.embed.fit == "whole":
            raise ConfigError("embed: the server gives one feature of one layer, and fit is crop, pad or stretch")


class Service:
    """The model, its queue and its index.

    Args:
        model: anything that `opendino.load` takes.
        config: see `ServeConfig`.
    """

    def __init__(self, model: str, config: ServeConfig) -> None:
        self.model, self.config, self.metrics = model, config, Metrics()
        self.index: Index | None = open_index(config.index) if config.index else None
        self.embedder: Embedder = (
            open_embedder(model, config.embed)
            if self.index is None
            else self.index.embedder(model, config.embed.device)
        )
        self.feature = self.embedder.names[0] if self.index is None else self.index.about["feature"]
        self.opening = 0  # images that are being decoded
        self.queue: Batcher[Tensor, np.ndarray] = Batcher(self._forward, config.batching, self.metrics.batch)

    def _forward(self, prepared: Sequence[Tensor]) -> list[np.ndarray]:
        return list(self.embedder(torch.stack(list(prepared)))[self.feature].numpy())

    async def opened(self, request: Request) -> list[Decoded]:
        """The images of a request, decoded beside the loop.

        Raises:
            BusyError: as many images as the queue holds are waiting or being decoded.
            HTTPException: more images than the queue ever holds, or a body that is refused.
        """
        data = await images_of(request, self.config.limits)
        if len(data) > self.config.batching.queue:
            raise HTTPException(413, f"{len(data)} images; the queue holds {self.config.batching.queue}")
        # Said before decoding, or what waits for a decoder would be a second queue, without a bound.
        if self.opening + self.queue.waiting + len(data) > self.config.batching.queue:
            raise BusyError
        channels = self.embedder.backbone.in_chans
        self.opening += len(data)
        try:
            return [await asyncio.to_thread(open_image, one, channels, self.config.limits) for one in data]
        finally:
            self.opening -= len(data)

    async def vectors(self, pictures: Sequence[Decoded]) -> np.ndarray:
        """Vectors of pictures."""
        prepared = [await asyncio.to_thread(self.embedder.prepare, one) for one in pictures]
        return np.stack(await self.queue(prepared))

    def pca(self, picture: Decoded) -> bytes:
        """PNG of the principal components of the patches."""
        backbone = self.embedder.backbone
        config = PcaConfig(side=_SIDE, background="keep", smooth=True)
        made = paint(picture, colour_maps([patch_features(backbone, picture)], config)[0], config)
        return _encoded(made, "PNG")


def make_app(model: str, config: ServeConfig = ServeConfig()) -> FastAPI:
    """The server, ready for uvicorn.

    Args:
        model: anything that `opendino.load` takes.
        config: see `ServeConfig`.
    """
    service = Service(model, config)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        await service.queue.start()
        yield
        await service.queue.stop()

    app = FastAPI(title="opendino", version=__version__, lifespan=life)
    app.state.service = service
    _guard(app, service)
    _add_features(app, service)
    _add_index(app, service)
    _add_state(app, service)
    return app


def _guard(app: FastAPI, service: Service) -> None:
    """Token, time, back-pressure and counts, around every address."""
    config = service.config

    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        start, path = time.perf_counter(), request.url.path
        if config.token and path not in _OPEN and not _knows(request, config.token):
            answer: Response = JSONResponse({"detail": "a token is wanted: Authorization: Bearer TOKEN"}, 401)
        else:
            answer = await call(request)
        known = path if any(getattr(route, "path", "") == path for route in app.routes) else "other"
        service.metrics.request(known, answer.status_code, time.perf_counter() - start)
        return answer

    @app.exception_handler(BusyError)
    async def busy(_request: Request, _error: BusyError) -> Response:
        return JSONResponse({"detail": "the queue is full; try again"}, 429, {"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def late(_request: Request, _error: TimeoutError) -> Response:
        return JSONResponse({"detail": f"no answer within {config.limits.seconds:g} s"}, 503, {"Retry-After": "5"})

    @app.exception_handler(DataError)
    async def broken(_request: Request, error: DataError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)


def _knows(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return secrets.compare_digest(given.encode(), token.encode())


def _add_features(app: FastAPI, service: Service) -> None:
    @app.post("/embed")
    async def embed(request: Request, format: Literal["json", "npy"] = "json") -> Response:
        """Vectors of the images of a request."""
        async with asyncio.timeout(service.config.limits.seconds):
            vectors = await service.vectors(await service.opened(request))
        if format == "npy":
            buffer = BytesIO()
            np.save(buffer, vectors)
            return Response(buffer.getvalue(), media_type="application/octet-stream")
        return JSONResponse(
            {"model": service.model, "feature": service.feature, "shape": vectors.shape, "vectors": vectors.tolist()}
        )

    @app.post("/pca")
    async def pca(request: Request) -> Response:
        """The PCA map of one image."""
        async with asyncio.timeout(service.config.limits.seconds):
            pictures = await service.opened(request)
            made = await service.queue.alone(lambda: service.pca(pictures[0]))
        return Response(made, media_type="image/png")


def _add_index(app: FastAPI, service: Service) -> None:
    def index() -> Index:
        if service.index is None:
            raise HTTPException(404, "the server was started without index=FEATURES")
        return service.index

    @app.post("/similar")
    async def similar(request: Request, k: int = 10) -> dict[str, Any]:
        """The images of the index that are most like one image."""
        found = index()
        if not 1 <= k <= 1000:
            raise HTTPException(422, f"k = {k}: give 1 to 1000")
        async with asyncio.timeout(service.config.limits.seconds):
            vectors = torch.from_numpy(await service.vectors((await service.opened(request))[:1]))
            hits = (await service.queue.alone(lambda: found.hits(vectors, k)))[0]
        return {"hits": [{"score": hit.score, "row": hit.row, "path": hit.path} for hit in hits]}

    @app.get("/image/{row}")
    async def image(row: int) -> Response:
        """A thumbnail of an image of the index."""
        found = index()
        if not 0 <= row < 2**62:
            raise HTTPException(404, f"row {row} is not in the index")
        found.position_of(row)
        made = await asyncio.to_thread(lambda: _encoded(thumbnail(found.dataset.image(row)), "JPEG"))
        return Response(made, media_type="image/jpeg")


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What is served."""
        images = 0 if service.index is None else len(service.index)
        return {"status": "ok", "model": service.model, "feature": service.feature, "index": images}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.metrics.text(service.queue.waiting), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to drop an image on."""
        return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _encoded(picture: Any, kind: str) -> bytes:  # noqa: ANN401  a Pillow image
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()
