# SPDX-License-Identifier: Apache-2.0
"""The addresses of the server.

| address          | takes                              | gives                                                  |
|------------------|------------------------------------|--------------------------------------------------------|
| `POST /embed`    | one image as body, or multipart    | vectors as JSON, or with `?format=npy` as an array     |
| `POST /similar`  | one image; `?k=10`                 | the images of the index most like it                   |
| `GET /similar`   | `?row=12&k=10`                     | those most like a row of the index, by its own vector  |
| `POST /pca`      | one image                          | its PCA map, PNG                                       |
| `GET /pca`       | `?row=12`                          | that of a row of the index                             |
| `GET /image/12`  | `?side=224`                        | row 12 of the index's images, made smaller, JPEG       |
| `GET /health`, `/metrics`, `/docs`, `/` | | state, counts, OpenAPI, a page to drop an image on         |

Read next: `bodies.py`, `batching.py`.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request, Response  # pyrefly: ignore[missing-import]  an extra
from fastapi.responses import HTMLResponse, JSONResponse  # pyrefly: ignore[missing-import]
from torch import Tensor

from opendino import __version__
from opendino.data.decode import Decoded
from opendino.data.fast import Decoder, choose_decoder
from opendino.embed import Embedder, FeatureSettings, open_embedder
from opendino.errors import ConfigError, DataError
from opendino.search import Index, open_index
from opendino.search.index import Hit
from opendino.search.page import thumbnail
from opendino.serve.batching import BatchConfig, Batcher, BusyError
from opendino.serve.bodies import LimitConfig, Opening, images_of, open_image
from opendino.serve.metrics import Metrics
from opendino.view.pca import PcaConfig, colour_maps, paint, patch_features

_OPEN = ("/health", "/")  # without a token
_SIDE = 512  # pixels of a PCA map
_MOST = 1000  # neighbours, and pixels of a side
T = TypeVar("T")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `opendino serve`.

    Attributes:
        host: address that is listened on; the default is seen by this machine only.
        port: number of the port.
        token: that requests must bring as "Authorization: Bearer TOKEN"; none when empty.
        index: embedded folder or index, for /similar; none when empty.
        embed: which feature, and what the model sees; with an index, that of the index is taken.
        decoder: "pillow", "fast", or "auto" for the fast one where it is installed; with an index, that of the index.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; with an index, as there.
        orient: whether the EXIF orientation is applied; with an index, as there.
        batching: how requests are put together.
        limits: what a request may ask for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    index: str = ""
    embed: FeatureSettings = field(default_factory=FeatureSettings)
    decoder: Decoder = "auto"
    value_range: tuple[float, float] | None = None
    orient: bool = True
    batching: BatchConfig = field(default_factory=BatchConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)

    def __post_init__(self) -> None:
        if len(self.embed.features) != 1 or len(self.embed.layers) > 1 or self.embed.fit == "whole":
            raise ConfigError("embed: the server gives one feature of one layer, and fit is crop, pad or stretch")


def _as_the_index(config: ServeConfig) -> None:
    """Refuse settings that the index has already answered.

    Raises:
        ConfigError: there is one.
    """
    usual = ServeConfig(embed=FeatureSettings(device=config.embed.device))
    given = [f"embed.{item.name}" for item in fields(config.embed)
             if getattr(config.embed, item.name) != getattr(usual.embed, item.name)]  # fmt: skip
    if config.decoder != usual.decoder:
        given.append("decoder")
    if given:
        raise ConfigError(
            f"{', '.join(given)}: with index= images are embedded as those of the index were; leave it out"
        )


class Service:
    """The model, its queue and its index.

    Args:
        model: anything that `opendino.load` takes.
        config: see `ServeConfig`.
    """

    def __init__(self, model: str, config: ServeConfig) -> None:
        self.model, self.config, self.metrics = model, config, Metrics()
        if config.index:
            _as_the_index(config)
        self.index: Index | None = open_index(config.index) if config.index else None
        self.embedder: Embedder = (
            open_embedder(model, config.embed)
            if self.index is None
            else self.index.embedder(model, config.embed.device)
        )
        self.feature = self.embedder.names[0] if self.index is None else self.index.about["feature"]
        self.how = _opening(config, self.index)
        self.opening = 0  # images that are being decoded
        self.queue: Batcher[Tensor, np.ndarray] = Batcher(self._forward, config.batching, self.metrics.batch)

    def _forward(self, prepared: Sequence[Tensor]) -> list[np.ndarray]:
        return list(self.embedder(torch.stack(list(prepared)))[self.feature].numpy())

    async def opened(self, request: Request, work: Callable[[bytes], T]) -> list[T]:
        """What is made of each image of a request, beside the loop.

        Raises:
            BusyError: as many images as the queue holds are waiting or being decoded.
            HTTPException: more images than the queue ever holds, or a body that is refused.
        """
        data = await images_of(request, self.config.limits)
        if len(data) > self.config.batching.queue:
            raise HTTPException(413, f"{len(data)} images; the queue holds {self.config.batching.queue}")
        with self._room(len(data)):
            return [await asyncio.to_thread(work, one) for one in data]

    async def stored(self, index: Index, row: int, work: Callable[[Decoded], T]) -> T:
        """What is made of an image of the index, beside the loop.

        Raises:
            BusyError: as `opened`.
            HTTPException: 404, it is not where it was.
        """
        with self._room(1):
            return await asyncio.to_thread(lambda: work(_stored(index, row)))

    @contextlib.contextmanager
    def _room(self, images: int) -> Iterator[None]:
        """Said before decoding, or what waits for a decoder would be a second queue, without a bound."""
        if self.opening + self.queue.waiting + images > self.config.batching.queue:
            raise BusyError
        self.opening += images
        try:
            yield
        finally:
            self.opening -= images

    def picture(self, data: bytes) -> Decoded:
        """An image as people see it."""
        how = self.how._replace(decoder="pillow")  # which decodes at once
        return cast("Decoded", open_image(data, self.embedder.backbone.in_chans, self.config.limits, how))

    def prepared(self, data: bytes) -> Tensor:
        """An image as the model takes it."""
        channels = self.embedder.backbone.in_chans
        return self.embedder.prepare(open_image(data, channels, self.config.limits, self.how))

    async def vectors(self, request: Request, most: int | None = None) -> np.ndarray:
        """Vectors of the images of a request, or of the first of them."""
        return np.stack(await self.queue((await self.opened(request, self.prepared))[:most]))

    def pca(self, picture: Decoded) -> bytes:
        """PNG of the principal components of the patches."""
        backbone = self.embedder.backbone
        config = PcaConfig(side=_SIDE, background="keep", smooth=True)
        made = paint(picture, colour_maps([patch_features(backbone, picture)], config)[0], config)
        return _encoded(made, "PNG")


def _opening(config: ServeConfig, index: Index | None) -> Opening:
    """As the run decoded its images or, with an index, as those of the index were decoded."""
    if index is None:
        return Opening(choose_decoder(config.decoder, "decoder").decoder, config.orient, config.value_range)
    return Opening(index.decoder, index.opened["orient"], index.opened["value_range"])


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
            vectors = await service.vectors(request)
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
            pictures = await service.opened(request, service.picture)
            made = await service.queue.alone(lambda: service.pca(pictures[0]))
        return Response(made, media_type="image/png")


def _add_index(app: FastAPI, service: Service) -> None:
    def index(k: int = 1) -> Index:
        if service.index is None:
            raise HTTPException(404, "the server was started without index=FEATURES")
        if not 1 <= k <= _MOST:
            raise HTTPException(422, f"k = {k}: give 1 to {_MOST}")
        return service.index

    @app.post("/similar")
    async def similar(request: Request, k: int = 10) -> dict[str, Any]:
        """The images of the index that are most like one image."""
        found = index(k)
        async with asyncio.timeout(service.config.limits.seconds):
            vectors = torch.from_numpy(await service.vectors(request, most=1))
            return _told((await service.queue.alone(lambda: found.hits(vectors, k)))[0])

    @app.get("/similar")
    async def similar_to_row(row: int, k: int = 10) -> dict[str, Any]:
        """The images of the index that are most like one of them, by its own vector; that one is left out."""
        found = index(k)
        at = _position(found, row)
        vector = found.vectors.block(at, at + 1)
        async with asyncio.timeout(service.config.limits.seconds):
            return _told((await service.queue.alone(lambda: found.hits(vector, k, leave_out=[at])))[0])

    @app.get("/pca")
    async def pca_of_row(row: int) -> Response:
        """The PCA map of an image of the index."""
        found = index()
        _position(found, row)
        async with asyncio.timeout(service.config.limits.seconds):
            picture = await service.stored(found, row, lambda picture: picture)
            made = await service.queue.alone(lambda: service.pca(picture))
        return Response(made, media_type="image/png")

    @app.get("/image/{row}")
    async def image(row: int, side: int = 224) -> Response:
        """An image of the index, made smaller."""
        found = index()
        _position(found, row)
        if not 1 <= side <= _MOST:
            raise HTTPException(422, f"side = {side}: give 1 to {_MOST}")
        async with asyncio.timeout(service.config.limits.seconds):
            made = await service.stored(found, row, lambda picture: _encoded(thumbnail(picture, side), "JPEG"))
        return Response(made, media_type="image/jpeg")


def _told(hits: Sequence[Hit]) -> dict[str, Any]:
    return {"hits": [{"score": hit.score, "row": hit.row, "path": hit.path} for hit in hits]}


def _position(index: Index, row: int) -> int:
    """Position of a row.

    Raises:
        HTTPException: 404, it is not in the index.
    """
    if 0 <= row < 2**62:
        with contextlib.suppress(DataError):
            return index.position_of(row)
    have = f"it has {len(index)} of the rows 0 to {index.table['row'][-1]}; images that could not be read have none"
    raise HTTPException(404, f"row {row} is not in the index: {have}")


def _stored(index: Index, row: int) -> Decoded:
    """An image of the index.

    Raises:
        HTTPException: 404, it is not where it was.
    """
    try:
        return index.dataset.image(row)
    except (DataError, OSError) as error:
        raise HTTPException(404, f"the image of row {row} cannot be opened ({error})") from None


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
