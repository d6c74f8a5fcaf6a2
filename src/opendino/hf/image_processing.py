# SPDX-License-Identifier: Apache-2.0
"""The image processor of the Hugging Face face: images to `pixel_values`, as `preprocessor_config.json` says.

Two ways to the same picture. "pil" (the default) gives the numbers of the published processor bit for bit: Pillow
resizes, and the rest is a table of 256 entries a channel. "torch" resizes uint8 tensors on their device with
antialiasing, several times faster; it is at most a few 255ths off (see `docs/how-to/hugging-face.md`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from opendino.checkpoint.convert._hf_config import PREPROCESSOR
from opendino.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from opendino.hf import _pixels
from opendino.hf._places import reached
from opendino.hf.errors import InputError

BACKENDS: Mapping[str, str] = {"pil": "pil", "torch": "torch", "torchvision": "torch"}
"""Names that are understood; transformers calls its fast one after torchvision, which we do not need."""
Size = Mapping[str, int] | int | Sequence[int] | None
Statistic = float | int | Sequence[float | int] | None


@dataclass(frozen=True)
class Settings:
    """What is done to each image, in this order; the fields are those of `preprocessor_config.json`."""

    do_convert_rgb: bool
    do_resize: bool
    size: Mapping[str, int]
    resample: int
    do_center_crop: bool
    crop_size: Mapping[str, int]
    do_rescale: bool
    rescale_factor: float | int
    do_normalize: bool
    image_mean: Statistic
    image_std: Statistic


class Dinov2ImageProcessor(BaseImageProcessor):
    """Resize, cut the centre, scale to 0..1 and normalise.

    Args:
        do_resize: whether to resize.
        size: {"shortest_edge": pixels} keeps the proportions, {"height": .., "width": ..} does not.
        resample: filter of Pillow; 3 is bicubic.
        do_center_crop: whether to cut the centre; smaller images get a black border.
        crop_size: {"height": .., "width": ..}, or one side.
        do_rescale: whether to multiply with `rescale_factor`.
        rescale_factor: 1/255 makes bytes 0..1.
        do_normalize: whether to subtract the mean and divide by the standard deviation.
        image_mean: of each channel.
        image_std: of each channel.
        do_convert_rgb: make RGB of everything; transparency is laid over white.
        backend: "pil" (exact) or "torch" (fast); "torchvision" is the same as "torch". Not written to files.
        use_fast: older name: True is "torch".
        **kwargs: what else the file holds; kept.

    Raises:
        InputError: a setting or an image that cannot be used; also a ValueError.

    Source: transformers, `BitImageProcessor`, with the values of facebook/dinov2-base as defaults.
    Differs: transformers' own defaults are CLIP's mean and deviation and no margin (224 in place of 256).
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  as transformers declares it

    def __init__(  # noqa: PLR0913  the published fields
        self,
        do_resize: bool = True,
        size: Size = None,
        resample: int = Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: Size = None,
        do_rescale: bool = True,
        rescale_factor: float | int = 1 / 255,
        do_normalize: bool = True,
        image_mean: Statistic = None,
        image_std: Statistic = None,
        do_convert_rgb: bool = True,
        backend: str | None = None,
        use_fast: bool | None = None,
        **kwargs: Any,  # noqa: ANN401  whatever the file holds
    ) -> None:
        kwargs.pop("image_processor_type", None)
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = size_of({"shortest_edge": 256} if size is None else size, "size")
        self.resample = resample_of(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = size_of({"height": 224, "width": 224} if crop_size is None else crop_size, "crop_size")
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(IMAGENET_MEAN) if image_mean is None else image_mean
        self.image_std = list(IMAGENET_STD) if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb
        self._backend = backend_of(backend, use_fast)

    @property
    def backend(self) -> str:
        """How images are resized: "pil" or "torch"."""
        return self._backend

    @property
    def is_fast(self) -> bool:
        """Whether the fast way is taken; transformers 4.57 asks this."""
        return self._backend == "torch"

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:  # noqa: ANN401  see `preprocess`
        """`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,  # noqa: ANN401  Pillow, numpy, torch, nested lists
        *,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        **settings: Any,  # noqa: ANN401  fields of the constructor, for this call
    ) -> BatchFeature:
        """Images to the input of a model.

        Args:
            images: one image or a list: Pillow images; numpy arrays or torch tensors [H, W], [C, H, W] or [H, W, C],
                bytes or floats (0..1 or whole numbers to 255); or a batch [B, C, H, W].
            return_tensors: "pt" for a torch tensor, "np" for one array, None for a list of arrays.
            data_format: "channels_first" or "channels_last", of the result.
            input_data_format: of arrays and tensors; by default told by where 1, 3 or 4 channels stand.
            backend: "pil" or "torch" for this call.
            device: where the fast way computes; by default where the tensors are.
            **settings: fields of the constructor; others are ignored, as in transformers.

        Returns:
            pixel_values, float32 (bytes where neither scaled nor normalised).

        Raises:
            InputError: something that is no image, or images that do not fit the settings.
        """
        chosen = self._settings(settings)
        flat = _pixels.flatten(images)
        how = self._backend if backend is None and settings.get("use_fast") is None else None
        how = how or backend_of(backend, settings.get("use_fast"))
        layout = None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format))
        out_last = str(getattr(data_format, "value", data_format)) == "channels_last"
        if how == "torch":
            done = [_pixels.fast(image, chosen, layout, device) for image in flat]
            return self._batch([x.movedim(0, -1) if out_last else x for x in done], return_tensors)
        arrays = [_pixels.exact(image, chosen, layout) for image in flat]
        return self._batch([np.moveaxis(x, 0, -1) if out_last else x for x in arrays], return_tensors)

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The fields of a file and the arguments that are left, as in transformers, which asks for all files here.

        Raises:
            MissingFilesError: the file, or the folder, is not at hand and cannot be downloaded.
            BrokenFileError: it is no JSON object.
        """
        with reached(pretrained_model_name_or_path, PREPROCESSOR, kwargs) as arguments:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **arguments)

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401
        """An image processor of the fields of a file; arguments of the constructor take their place.

        Args:
            image_processor_dict: the fields.
            **kwargs: arguments of the constructor; with `return_unused_kwargs=True` the rest is given back beside it.
        """
        with_rest = kwargs.pop("return_unused_kwargs", False)
        given = {
            name: kwargs.pop(name) for name in (*Settings.__dataclass_fields__, "backend", "use_fast") if name in kwargs
        }
        made = cls(**{**image_processor_dict, **{name: value for name, value in given.items() if value is not None}})
        return (made, kwargs) if with_rest else made

    def to_dict(self) -> dict[str, Any]:
        """The settings as `preprocessor_config.json` holds them; plain transformers opens it as its own."""
        fields = super().to_dict()
        fields.pop("_backend", None)
        fields["image_processor_type"] = "BitImageProcessor"
        return fields

    def _settings(self, given: Mapping[str, Any]) -> Settings:
        values = {name: getattr(self, name) for name in Settings.__dataclass_fields__}
        values |= {name: value for name, value in given.items() if name in values and value is not None}
        for name in ("size", "crop_size"):
            values[name] = size_of(values[name], name)
        values["resample"] = resample_of(values["resample"])
        return Settings(**values)

    @staticmethod
    def _batch(images: list[Any], return_tensors: str | None) -> BatchFeature:
        kind = str(getattr(return_tensors, "value", return_tensors))
        if kind not in ("pt", "np"):
            return BatchFeature(data={"pixel_values": images}, tensor_type=return_tensors)
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise InputError(
                f"images of the shapes {sorted(shapes)} do not make one batch; "
                "use do_center_crop, or return_tensors=None for a list"
            )
        if isinstance(images[0], Tensor):
            batch = torch.stack(images)
            return BatchFeature(data={"pixel_values": batch if kind == "pt" else batch.cpu().numpy()})
        stacked = np.stack(images)
        return BatchFeature(data={"pixel_values": torch.from_numpy(stacked) if kind == "pt" else stacked})


def size_of(size: Size, name: str) -> dict[str, int]:
    """A size setting in its full form.

    Args:
        size: {"shortest_edge": ..}, {"height": .., "width": ..}, (height, width), or one side: the shortest edge of
            `size`, the side of the square of `crop_size`.
        name: of the setting: "size" or "crop_size".

    Raises:
        InputError: another form, or sides below 1.
    """
    if isinstance(size, int):
        size = {"shortest_edge": size} if name == "size" else {"height": size, "width": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if hasattr(size, "keys"):
        pairs: Any = size  # transformers 5 has a SizeDict that is no Mapping
        sides = {str(key): int(value) for key, value in dict(pairs).items() if value is not None}
        forms = ({"height", "width"}, {"shortest_edge"}) if name == "size" else ({"height", "width"},)
        if set(sides) in forms and min(sides.values()) >= 1:
            return sides
    raise InputError(
        f'{name}={size!r}; {{"height": .., "width": ..}} or, for size, {{"shortest_edge": ..}} was wanted, '
        "in pixels from 1 on"
    )


def resample_of(resample: int) -> int:
    """Pillow's number of a filter.

    Raises:
        InputError: Pillow has no such filter.
    """
    known = {int(kind): kind.name.lower() for kind in Image.Resampling}
    if isinstance(resample, bool) or int(resample) not in known:
        names = ", ".join(f"{number} ({kind})" for number, kind in sorted(known.items()))
        raise InputError(f"resample={resample!r} is no filter of Pillow; choose one of {names}")
    return int(resample)


def backend_of(backend: str | None, use_fast: bool | None = None) -> str:
    """The backend meant: "pil" or "torch".

    Raises:
        InputError: an unknown name.
    """
    name = backend or ("torch" if use_fast else "pil")
    if name not in BACKENDS:
        raise InputError(f"backend={backend!r} is unknown; choose 'pil' (exact) or 'torch' (fast)")
    return BACKENDS[name]
