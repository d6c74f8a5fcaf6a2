# SPDX-License-Identifier: Apache-2.0
"""One image through the steps of `image_processing.py`: `exact` with Pillow and numpy, `fast` with torch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from opendino.hf.errors import InputError

if TYPE_CHECKING:
    from opendino.hf.image_processing import Settings

CHANNELS = (1, 3, 4)
INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter -> torch's name."""
Planes = Shaped[np.ndarray, "C H W"]


def flatten(images: Any) -> list[Any]:  # noqa: ANN401  Pillow, numpy, torch, nested lists
    """All images of a list, a nested list, a batch, or the one image, in their order.

    Raises:
        InputError: nothing, or something that is no image.
    """
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        flat = [image for item in images for image in flatten(item)]
        if not flat:
            raise InputError("no images came; pass one image or a list of them")
        return flat
    if isinstance(images, np.ndarray | Tensor) and images.ndim in (4, 5):
        return [image for item in images for image in flatten(item)]
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim in (2, 3)):
        shape = images.size if isinstance(images, Image.Image) else tuple(images.shape)
        if 0 in shape:
            raise InputError(f"an image without pixels came: {shape}; leave it out")
        return [images]
    size = f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else ""
    raise InputError(f"{type(images).__name__}{size} is no image; pass Pillow images, numpy arrays or torch tensors")


def exact(image: Any, settings: "Settings", layout: str | None) -> Shaped[np.ndarray, "C h w"]:  # noqa: ANN401
    """One image, with the numbers of transformers' Pillow processor bit for bit."""
    _check_finite(image)
    if isinstance(image, Image.Image) and settings.do_convert_rgb:
        image = opaque(image)
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB", "RGBA") and settings.do_resize:
        size = target_size((image.height, image.width), settings.size)
        planes = _planes(image.resize((size[1], size[0]), Image.Resampling(settings.resample)), False, None)
    else:
        planes = _planes(image, settings.do_convert_rgb, layout)
        if settings.do_resize:
            planes = _resize_with_pillow(planes, target_size(planes.shape[1:], settings.size), settings.resample)
    if settings.do_center_crop:
        planes = _crop(planes, (settings.crop_size["height"], settings.crop_size["width"]))
    if planes.dtype == np.uint8 and (settings.do_rescale or settings.do_normalize):
        table = _table(_key(settings, planes.shape[0]))
        return np.stack([values.take(plane) for values, plane in zip(table, planes, strict=True)])
    out = _values(planes, _key(settings, planes.shape[0]))
    return out if out.flags.writeable else out.copy()  # Pillow's own pixels are read-only


def fast(
    image: Any,  # noqa: ANN401  Pillow, numpy or torch
    settings: "Settings",
    layout: str | None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "C h w"] | UInt8[Tensor, "C h w"]:
    """One image on its device, resized as bytes with antialiasing."""
    _check_finite(image)
    planes = _tensor(image, settings.do_convert_rgb, layout)
    planes = planes if device is None else planes.to(device)
    if settings.do_resize:
        height, width = target_size(tuple(planes.shape[1:]), settings.size)
        planes = _resize_with_torch(planes, (height, width), settings.resample)
    if settings.do_center_crop:
        planes = _crop_tensor(planes, (settings.crop_size["height"], settings.crop_size["width"]))
    if settings.do_rescale:
        planes = planes.float() * settings.rescale_factor
    if settings.do_normalize:
        _, _, mean, std = _key(settings, planes.shape[0])
        mean, std = (torch.tensor(v, dtype=torch.float32, device=planes.device)[:, None, None] for v in (mean, std))
        planes = (planes.float() - mean) / std
    return planes


def _check_finite(image: Any) -> None:  # noqa: ANN401
    floats = isinstance(image, Tensor) and image.is_floating_point()
    floats = floats or (isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating))
    if floats and not bool((torch.isfinite(image) if isinstance(image, Tensor) else np.isfinite(image)).all()):
        raise InputError("an image holds values that are not finite (NaN or infinite); replace them before")


def target_size(size: Sequence[int], wanted: Any) -> tuple[int, int]:  # noqa: ANN401  a mapping
    """(height, width) after resizing; the longer side is rounded down, as torchvision does."""
    if "shortest_edge" not in wanted:
        return wanted["height"], wanted["width"]
    short, (height, width) = wanted["shortest_edge"], size
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def _planes(image: Any, rgb: bool, layout: str | None) -> Planes:  # noqa: ANN401
    """An image as an array with the channels first, of its own type of values."""
    if isinstance(image, Image.Image):
        array = np.asarray(opaque(image) if rgb else image)
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.ndim == 2:
        array = array[None]
    elif channels_last(array.shape, layout):
        array = np.moveaxis(array, -1, 0)
    return _rgb(array) if rgb else array


def opaque(image: Image.Image) -> Image.Image:
    """A Pillow image in RGB, transparency over white.

    Differs: transformers 4.57 drops transparency and shows the colour under it; 5.x lays it over white.
    """
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")


def channels_last(shape: Sequence[int], layout: str | None) -> bool:
    """Whether an array or tensor of three axes has its channels last; first, where both would do.

    Raises:
        InputError: no axis holds 1, 3 or 4 channels.
    """
    if layout is not None:
        return layout == "channels_last"
    if shape[0] in CHANNELS:
        return False
    if shape[-1] in CHANNELS:
        return True
    raise InputError(
        f"an image of shape {tuple(shape)} has its 1, 3 or 4 channels neither first nor last; "
        "pass input_data_format='channels_first' or 'channels_last'"
    )


def _rgb(planes: Planes) -> Shaped[np.ndarray, "rgb H W"]:
    if planes.shape[0] == 1:
        return np.repeat(planes, 3, axis=0)
    if planes.shape[0] != 4:
        return planes
    whole = np.issubdtype(planes.dtype, np.integer)
    white = 255 if whole else 1.0
    if not whole and (planes.min() < 0 or planes.max() > 1):
        raise InputError(f"floats with transparency must lie in 0..1; {planes.min()} to {planes.max()} came")
    alpha = planes[3:] / white
    over = alpha * planes[:3] + (1 - alpha) * white
    return (np.round(over) if whole else over).astype(planes.dtype)


def _resize_with_pillow(planes: Planes, size: tuple[int, int], resample: int) -> Shaped[np.ndarray, "C h w"]:
    """Resized bytes, or float32 0..1 where floats in 0..1 came: Pillow works on bytes, so these become bytes first."""
    scaled = _is_scaled(planes)
    pixels = (planes.astype(np.float64) * 255).astype(np.float32) if scaled else planes
    pixels = np.ascontiguousarray(np.moveaxis(pixels.astype(np.uint8), 0, -1))
    if pixels.shape[-1] in CHANNELS:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        out = np.asarray(image.resize((size[1], size[0]), resample=Image.Resampling(resample)))
    else:  # Pillow has no mode for these, and treats each channel by itself anyway
        bands = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[-1])]
        out = np.stack(
            [np.asarray(b.resize((size[1], size[0]), resample=Image.Resampling(resample))) for b in bands], -1
        )
    out = out[None] if out.ndim == 2 else np.moveaxis(out, -1, 0)
    return (out.astype(np.float64) * (1 / 255)).astype(np.float32) if scaled else out


def _is_scaled(planes: Planes) -> bool:
    """Whether values are 0..1 and not 0..255.

    Raises:
        InputError: they are neither.
    """
    if planes.dtype == np.uint8:
        return False
    low, high = planes.min(), planes.max()
    if np.allclose(planes, planes.astype(int)) and low >= 0 and high <= 255:
        return False
    if low >= 0 and high <= 1:
        return True
    raise InputError(
        f"values from {low} to {high} cannot be resized; bytes, whole numbers from 0 to 255 or fractions from 0 to 1 "
        "were wanted, or do_resize=False"
    )


def _offsets(have: int, want: int) -> tuple[int, int]:
    """(first pixel to keep, black pixels before it) of one axis."""
    return ((have - want) // 2, 0) if have >= want else (0, (want - have + 1) // 2)


def _crop(planes: Planes, size: tuple[int, int]) -> Shaped[np.ndarray, "C h w"]:
    (top, above), (left, beside) = (_offsets(have, want) for have, want in zip(planes.shape[1:], size, strict=True))
    part = planes[:, top : top + size[0], left : left + size[1]]
    if part.shape[1:] == tuple(size):
        return part
    out = np.zeros((planes.shape[0], *size), dtype=planes.dtype)
    out[:, above : above + part.shape[1], beside : beside + part.shape[2]] = part
    return out


def _crop_tensor(planes: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Shaped[Tensor, "C h w"]:
    (top, above), (left, beside) = (_offsets(have, want) for have, want in zip(planes.shape[1:], size, strict=True))
    part = planes[:, top : top + size[0], left : left + size[1]]
    below, right = size[0] - above - part.shape[1], size[1] - beside - part.shape[2]
    return F.pad(part, (beside, right, above, below)) if any((above, beside, below, right)) else part


def _key(settings: "Settings", channels: int) -> tuple[float | None, bool, tuple[float, ...], tuple[float, ...]]:
    """(factor, whether to normalise, mean and deviation of each channel): all that the last two steps depend on."""
    factor = float(settings.rescale_factor) if settings.do_rescale else None
    if not settings.do_normalize:
        return factor, False, (0.0,) * channels, (1.0,) * channels
    sides = []
    for name, value in (("image_mean", settings.image_mean), ("image_std", settings.image_std)):
        values = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value or ())
        if len(values) != channels:
            raise InputError(f"{name} has {len(values)} numbers for images of {channels} channels")
        sides.append(values)
    return factor, True, sides[0], sides[1]


@lru_cache(maxsize=16)
def _table(key: tuple[float | None, bool, tuple[float, ...], tuple[float, ...]]) -> Float[np.ndarray, "C 256"]:
    """What each of 256 byte values becomes, in each channel."""
    return _values(np.tile(np.arange(256, dtype=np.uint8)[None], (len(key[2]), 1))[..., None], key)[..., 0]


def _values(planes: Planes, key: tuple[float | None, bool, tuple[float, ...], tuple[float, ...]]) -> Planes:
    """Rescale, then normalise; each rounds to float32 once, in the order transformers rounds."""
    factor, normalize, mean, std = key
    if factor is not None:
        planes = (planes.astype(np.float64) * factor).astype(np.float32)
    if not normalize:
        return planes
    if not np.issubdtype(planes.dtype, np.floating):
        planes = planes.astype(np.float32)
    centre, spread = (np.array(values, dtype=planes.dtype)[:, None, None] for values in (mean, std))
    return (planes - centre) / spread


def _tensor(image: Any, rgb: bool, layout: str | None) -> Shaped[Tensor, "C H W"]:  # noqa: ANN401
    """An image as a tensor with the channels first, on its device."""
    if not isinstance(image, Tensor):
        return torch.from_numpy(np.array(_planes(image, rgb, layout), order="C"))
    if image.ndim == 2:
        image = image[None]
    elif channels_last(image.shape, layout):
        image = image.movedim(-1, 0)
    if not rgb or image.shape[0] == 3:
        return image
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    return torch.from_numpy(_rgb(image.cpu().numpy())).to(image.device)


def _resize_with_torch(
    planes: Shaped[Tensor, "C H W"], size: tuple[int, int], resample: int
) -> Shaped[Tensor, "C h w"]:
    if resample not in INTERPOLATION:
        raise InputError(f"resample={resample} has no fast form; use 3 (bicubic), 2 (bilinear), 0 or backend='pil'")
    mode = INTERPOLATION[resample]
    smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    whole = not planes.is_floating_point()
    # bytes are resized as bytes on the CPU, where that is the fastest; elsewhere torch has no such kernel
    native = planes.dtype == torch.uint8 and planes.device.type == "cpu"
    if whole and not native:
        low, high = (int(value) for value in planes.float().aminmax())
        if low < 0 or high > 255:
            raise InputError(
                f"values from {low} to {high} cannot be resized as bytes; scale them to 0..1 or 0..255 before"
            )
    pixels = planes.contiguous()[None] if native else planes[None].float()
    out = F.interpolate(pixels, size=size, mode=mode, **smooth)[0]
    return out if native or not whole else out.round().clamp(0, 255).to(planes.dtype)
