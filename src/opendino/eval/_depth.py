# SPDX-License-Identifier: Apache-2.0
"""Losses, figures and published crops of monocular depth; `depth.py` uses them.

A depth of 0, or beyond the data's range, is no measurement; `learned` and `valid` say what counts where.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPS = 1e-3
_VARIANCE_FOCUS = 0.15
_SCALES = (1, 2, 4, 8)


def learned(target: Float[Tensor, "*p"], high: float) -> Bool[Tensor, "*p"]:
    """Pixels that a head learns from: above 0, up to and with the end of the range.

    Source: official `eval/depth/models/losses/sigloss.py`, which counts the maximum that the evaluation leaves out.
    """
    return torch.isfinite(target) & (target > 0) & (target <= high)


def valid(target: Float[Tensor, "*p"], low: float, high: float) -> Bool[Tensor, "*p"]:
    """Pixels that figures are of: strictly within the range, so that sensors' largest number does not count.

    Source: official `eval/depth/` data sets of NYU and KITTI, as Eigen et al. 2014 evaluate.
    """
    return torch.isfinite(target) & (target > max(low, 0.0)) & (target < high)


def sig_loss(
    predicted: Float[Tensor, "*p"], target: Float[Tensor, "*p"], counted: Bool[Tensor, "*p"], *, warm: bool = False
) -> Float[Tensor, ""]:
    """Scale-invariant loss: the root of var(g) + 0.15 mean(g)^2, with g the difference of the logarithms.

    Args:
        predicted: depth, positive.
        target: depth.
        counted: pixels that count; at least two.
        warm: leave the variance out, as for the first 100 steps.

    Source: Eigen et al. 2014; official `eval/depth/models/losses/sigloss.py`.
    """
    g = (predicted[counted] + _EPS).log() - (target[counted] + _EPS).log()
    mean = _VARIANCE_FOCUS * g.mean().square()
    return (mean if warm else g.var() + mean).clamp(min=1e-12).sqrt()


def gradient_loss(
    predicted: Float[Tensor, "B H W"], target: Float[Tensor, "B H W"], counted: Bool[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the slopes of the logarithms along rows and columns, summed over four scales.

    Source: Li and Snavely 2018, "MegaDepth"; official `eval/depth/models/losses/gradientloss.py`.
    Differs: slopes run along rows and columns; the official code takes the batch and channel axes for them.
    """
    g = (predicted + _EPS).log() - (torch.where(counted, target, 1.0) + _EPS).log()
    total = predicted.new_zeros(())
    for step in _SCALES:
        part, kept = g[:, ::step, ::step], counted[:, ::step, ::step]
        pixels = kept.sum().clamp(min=1)
        for axis in (1, 2):
            size = part.shape[axis] - 2
            if size < 1:
                continue
            both = kept.narrow(axis, 0, size) & kept.narrow(axis, 2, size)
            slope = (part.narrow(axis, 2, size) - part.narrow(axis, 0, size)).abs()
            total = total + torch.where(both, slope, 0.0).sum() / pixels
    return total


def errors(predicted: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> dict[str, float]:
    """Figures of one image, over the pixels that count.

    Better ones have lower `rmse`, `abs_rel`, `sq_rel`, `log10`, `rmse_log` and `silog`, and higher `d1`, `d2` and `d3`:
    shares of pixels within a factor of 1.25, 1.25^2 and 1.25^3, in percent.

    Source: Eigen et al. 2014, section 4.
    """
    p, t = predicted.double(), target.double()
    ratio = torch.maximum(p / t, t / p)
    logs = p.log() - t.log()
    return {
        "rmse": float((p - t).square().mean().sqrt()),
        "abs_rel": float(((p - t).abs() / t).mean()),
        "sq_rel": float(((p - t).square() / t).mean()),
        "log10": float((p.log10() - t.log10()).abs().mean()),
        "rmse_log": float(logs.square().mean().sqrt()),
        "silog": float(100 * (logs.square().mean() - logs.mean().square()).clamp(min=0).sqrt()),
        **{f"d{i}": 100 * float((ratio < 1.25**i).double().mean()) for i in (1, 2, 3)},
    }


def eval_crop(name: str, height: int, width: int) -> Bool[Tensor, "H W"]:
    """Pixels that a published protocol counts.

    Args:
        name: "none", "eigen" (NYU: rows 45-471, columns 41-601 of 480x640, in proportion), "kitti_eigen" or "garg".
        height: of the depth map.
        width: of the depth map.
    """
    box = {
        "none": (0.0, 1.0, 0.0, 1.0),
        "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
        "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
        "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    }[name]
    counted = torch.zeros(height, width, dtype=torch.bool)
    # The published code rounds KITTI's edges down; NYU's are whole at its size.
    top, bottom = (int(edge * height + 1e-6) for edge in box[:2])
    left, right = (int(edge * width + 1e-6) for edge in box[2:])
    counted[top:bottom, left:right] = True
    return counted
