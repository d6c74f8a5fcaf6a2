# SPDX-License-Identifier: Apache-2.0
"""What torchvision makes of a synthetic picture, stored for machines where torchvision does not import.

`python torchvision_oracle.py` writes `torchvision.npz` beside this file; the tests read it, and compare it with a
fresh run of this file where torchvision imports. Written with torch 2.13.0, torchvision 0.28.0, Pillow 13.0.0.
"""

from pathlib import Path

import numpy as np
from PIL import Image

STORED = Path(__file__).with_name("torchvision.npz")
BOXES = {
    "inner": (3, 5, 20, 31, 28),
    "enlarged": (10, 20, 9, 13, 32),
    "whole": (0, 0, 90, 120, 24),
    "thin": (0, 7, 90, 4, 17),
}
JITTER = {
    "brightness": (0.6, 1.0, 1.37),
    "contrast": (0.6, 1.0, 1.37),
    "saturation": (0.8, 1.0, 1.2),
    "hue": (-0.1, -0.033, 0.0, 0.05, 0.1),
}
SIGMAS = (0.1, 0.45, 1.3, 2.0)
FRAMES = {"landscape": (40, 32), "exact": (32, 32), "smaller": (24, 32), "enlarged": (120, 24), "wide": (33, (24, 40))}
# height, width, scale
LAWS = {
    "global": (90, 120, (0.32, 1.0)),
    "local": (90, 120, (0.05, 0.32)),
    "flat": (20, 200, (0.32, 1.0)),
    "tall": (301, 20, (0.9, 1.0)),
}
# size, scale, blur, solarize
VIEWS = {
    "first": (32, (0.32, 1.0), 0.0, 0.0),
    "second": (32, (0.32, 1.0), 0.9, 0.2),
    "local": (16, (0.05, 0.32), 0.5, 0.0),
}


def picture(mode="RGB", height=90, width=120):
    """A colourful picture with slopes, edges and noise, from integers alone."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    noise = (x * 7919 + y * 104729 + x * y * 31) % 23
    planes = [(x * 2 + y * (c + 1) + 40 * ((x // 17 + y // 13 + c) % 3) + noise + 37 * c) % 256 for c in range(3)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).convert(mode)


def small(mode="RGB"):
    """The picture at the size of a crop, odd and even."""
    return picture(mode, 23, 36)


def tiny():
    """A float picture [C, H, W] in 0..1."""
    return np.ascontiguousarray(np.asarray(picture("RGB", 13, 17), dtype=np.float32).transpose(2, 0, 1)) / 255


def expected():
    """Results of torchvision's functions, by name."""
    import torch
    from torchvision.transforms import functional as F
    from torchvision.transforms.functional import InterpolationMode

    bicubic = InterpolationMode.BICUBIC
    out = {}
    for mode in ("RGB", "L"):
        for name, (top, left, height, width, size) in BOXES.items():
            cut = F.resized_crop(picture(mode), top, left, height, width, [size, size], bicubic)
            out[f"crop/{mode}/{name}"] = np.asarray(cut)
        for name, factors in JITTER.items():
            for factor in factors:
                out[f"{name}/{mode}/{factor}"] = np.asarray(getattr(F, f"adjust_{name}")(small(mode), factor))
        for sigma in SIGMAS:
            out[f"blur/{mode}/{sigma}"] = np.asarray(F.gaussian_blur(small(mode), [9, 9], [sigma, sigma]))
            out[f"blur_large/{mode}/{sigma}"] = np.asarray(F.gaussian_blur(picture(mode), [9, 9], [sigma, sigma]))[
                1::7, ::5
            ]
        out[f"solarize/{mode}"] = np.asarray(F.solarize(small(mode), 128))
        out[f"flip/{mode}"] = np.asarray(F.hflip(small(mode)))
        for name, (resize, size) in FRAMES.items():
            for turned in (False, True):
                image = picture(mode, 73, 50) if turned else picture(mode)
                image = F.center_crop(F.resize(image, resize, bicubic), size)
                out[f"frame/{mode}/{name}/{turned}"] = np.asarray(image)
    out["gray"] = np.asarray(F.to_grayscale(small(), 3))
    out["tensor"] = F.normalize(
        F.to_tensor(picture("RGB", 13, 17)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ).numpy()
    tensor = torch.from_numpy(tiny())
    for name, factors in JITTER.items():
        out[f"float/{name}"] = getattr(F, f"adjust_{name}")(tensor, factors[0]).numpy()
    out["float/blur"] = F.gaussian_blur(tensor, [9, 9], [1.3, 1.3]).numpy()
    out["float/solarize"] = F.solarize(tensor, 128 / 255).numpy()
    out["float/resize"] = F.resize(tensor, [9, 21], bicubic, antialias=True).clamp(0, 1).numpy()
    return out


def box_law(draws=20_000):
    """Mean and standard deviation of top, left, height and width of random crops, for each of `LAWS`."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    out = {}
    for name, (height, width, scale) in LAWS.items():
        torch.manual_seed(0)
        image = torch.empty(1, height, width)
        boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(draws)]
        out[f"law/{name}"] = summary(np.array(boxes, dtype=np.float64))
    return out


def view_statistics(draws=3_000):
    """Means and deviations of what the published chain of transforms gives, for each of `VIEWS`."""
    import torch
    from torchvision import transforms as T

    jitter = T.RandomApply([T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8)
    out = {}
    for name, (size, scale, blur, solarize) in VIEWS.items():
        torch.manual_seed(0)
        chain = T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(0.5),
                jitter,
                T.RandomGrayscale(0.2),
                T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur),
                T.RandomSolarize(128, p=solarize),
            ]
        )
        image = picture()
        out[f"view/{name}"] = summary(np.array([measures(np.asarray(chain(image))) for _ in range(draws)]))
    return out


def measures(pixels):
    """Of one view [H, W, 3]: channel means, contrast, whether it is grey, sharpness, lean to the right."""
    values = pixels.astype(np.float64)
    steps = np.abs(np.diff(values, axis=1)).mean()
    half = values.shape[1] // 2
    return [
        *values.mean(axis=(0, 1)),
        values.std(),
        float((values == values[..., :1]).all()),
        steps,
        values[:, half:].mean() - values[:, :half].mean(),
        float((values > 200).mean()),
    ]


def summary(rows):
    """[2, k]: mean and standard deviation of each column."""
    return np.stack([rows.mean(axis=0), rows.std(axis=0)])


if __name__ == "__main__":
    arrays = expected() | box_law() | view_statistics()
    np.savez_compressed(STORED, **arrays)
    print(f"{STORED}: {len(arrays)} arrays, {STORED.stat().st_size} bytes")
