# SPDX-License-Identifier: Apache-2.0
"""What fits the data and the machine where the user has not said anything, each choice with its reason.

`choose` is a pure function of what was given, of the data and of the machine; `facts.py` finds those out. A recipe that
names a model (`student.preset`) is complete: it means what it says on any data, the published defaults fill what it
leaves out, and only what concerns the machine and the kind of pixels is chosen. A recipe without one is put over what
would be chosen.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from opendino.models.presets import PRESETS
from opendino.train.facts import DataFacts, MachineFacts, Values

# Shorter side of the images, from which on a patch size is taken. On a CPU the number of images seen counts for more
# than detail, so there are about six by six patches.
_PATCHES_GPU = ((160, 14), (48, 8), (20, 4), (0, 2))
_PATCHES_CPU = ((128, 16), (80, 14), (48, 12), (20, 6), (0, 4))
_GRID_GPU, _GRID_CPU = 16, 6
_LOOKING = 0.05  # of a run's time, beyond which looks are left out
_LOOKED_AT = 2000  # labelled images of a look at the teacher on a CPU
_SHORT = 20_000  # steps; the published schedules are for 125,000 and more
_BATCH = 2048  # what `TrainConfig` has, for a recipe that names none
_DROP_PATH = {"vitl14": 0.3, "vitl16": 0.3, "vitg14": 0.4}
_BLURRED = 64  # pixels; in smaller crops the blur takes what there is to see
_DEPTHS = (8, 10, 12, 14, 15)  # bits; above, the whole range of 16 is taken anyway


class Choice(NamedTuple):
    """A value and why it was taken."""

    value: Any
    reason: str


def choose(given: Mapping[str, Any], data: DataFacts, machine: MachineFacts, complete: bool) -> dict[str, Choice]:
    """Settings that were not given, by dotted key.

    Args:
        given: settings of the recipe and of the command line, dotted; they are read, never overruled.
        data: of the run.
        machine: of the run.
        complete: leave everything to the recipe but the machine's part and the kind of pixels.
    """
    chosen = _of_the_data(given, data, machine) if not complete else {}
    if data.channels != 3:
        chosen["student.in_chans"] = Choice(data.channels, f"the images have {data.channels}")
    if (span := _value_range(data.values)) and data.values:
        why = f"pixels of {data.values.low:g} to {data.values.high:g} in the images looked at"
        chosen["images.value_range"] = Choice(span, why)
    steps = _steps({**{key: choice.value for key, choice in chosen.items()}, **given}, data, 0)
    chosen |= _of_the_machine(machine, steps)
    if "knn.every" in given:
        chosen.pop("knn.share", None)  # looks that were asked for are taken
    return {key: choice for key, choice in chosen.items() if key not in given}


def _of_the_machine(machine: MachineFacts, steps: int) -> dict[str, Choice]:
    gpu = machine.device == "cuda"
    workers = min(machine.cores - 1, 16) if gpu else min(machine.cores // 2, 4)
    fast = "this device multiplies bfloat16 fast" if machine.bf16 else "this device has no fast bfloat16"
    chosen = {
        "loader.decoder": Choice(*machine.decoder),
        "train.precision": Choice("bf16" if machine.bf16 else "fp32", fast),
        "loader.workers": Choice(max(workers, 0), f"{machine.cores} cores, {'a GPU to feed' if gpu else 'no GPU'}"),
    }
    if not gpu:
        # As many as steps at most: looks at a short run would else take a tenth of its time.
        most = max(min(steps or _LOOKED_AT, _LOOKED_AT), 100)
        chosen["knn.max_train"] = Choice(most, "a quick look, for a CPU")
        chosen["knn.max_val"] = Choice(most // 4, "a quick look, for a CPU")
    if steps:
        chosen["checkpoint.every"] = Choice(
            max(min(steps // 20, 2500), 50), "a twentieth of the run, at least 50 steps"
        )
        chosen["knn.every"] = Choice(max(steps // 10, 50), "a tenth of the run, at least 50 steps")
        chosen["knn.share"] = Choice(_LOOKING, "looks that would take more time are left out")
        chosen["log.every"] = Choice(1 if steps <= 2000 else 10, f"{steps} steps")
    return chosen


def _of_the_data(given: Mapping[str, Any], data: DataFacts, machine: MachineFacts) -> dict[str, Choice]:
    chosen = _model(given, data, machine)
    known = {**{key: choice.value for key, choice in chosen.items()}, **given}
    chosen |= _crops(known, data, machine)
    known |= {key: choice.value for key, choice in chosen.items() if key not in given}
    chosen |= _length(known, data, machine)
    known |= {key: choice.value for key, choice in chosen.items() if key not in given}
    chosen |= _head(data, machine)
    chosen |= _pace(_steps(known, data, _SHORT))
    chosen["dino.centering"] = Choice("sinkhorn_knopp", "keeps all prototypes in use, also on little data")
    return chosen


def _head(data: DataFacts, machine: MachineFacts) -> dict[str, Choice]:
    gpu = machine.device == "cuda"
    wanted = 2 ** round(math.log2(max(data.images / 10, 1)))
    prototypes = max(256, min(wanted, 65_536 if gpu else 1024))
    chosen = {"dino.prototypes": Choice(prototypes, f"for {data.images} images" + ("" if gpu else " and a CPU"))}
    if not gpu:
        chosen["dino.hidden_dim"] = Choice(512, "a quarter of the published width, for a CPU")
        chosen["dino.bottleneck_dim"] = Choice(128, "half of the published width, for a CPU")
    return chosen


def _pace(steps: int) -> dict[str, Choice]:
    """What a run of few steps needs to get anywhere."""
    if steps >= _SHORT:
        return {}
    momentum = round(min(max(1 - 100 / steps, 0.95), 0.992), 3)
    return {
        "teacher.momentum": Choice((momentum, 1.0), f"a run of {steps} steps: the teacher has less time to follow"),
        "student.init_values": Choice(0.1, "a short run: the published 1e-5 opens the blocks slowly"),
        "optim.layerwise_decay": Choice(1.0, "a short run: all blocks start from nothing"),
        "optim.patch_embed_lr_mult": Choice(1.0, "a short run: the patches start from nothing"),
    }


def _model(given: Mapping[str, Any], data: DataFacts, machine: MachineFacts) -> dict[str, Choice]:
    side, gpu = data.short_side, machine.device == "cuda"
    chosen: dict[str, Choice] = {}
    preset = str(given.get("student.preset"))
    if preset not in PRESETS:
        large = gpu and data.images >= 1_000_000
        preset = ("vitb14" if large else "vits14") if gpu else "vit_nano4"
        chosen["student.preset"] = Choice(preset, "a GPU" if gpu else "small enough for a CPU")
        patches = _PATCHES_GPU if gpu else _PATCHES_CPU
        patch = next(patch for least, patch in patches if side >= least)
        if patch != PRESETS[preset]["patch_size"]:
            chosen["student.patch_size"] = Choice(patch, f"images of about {side} pixels")
    if gpu:
        rate = _DROP_PATH.get(preset.removesuffix("_reg4"), 0.1)
        why = "as published for a model of this size" if rate > 0.1 else "a small model; large ones take 0.3 to 0.4"
        chosen["student.drop_path_rate"] = Choice(rate, why)
    return chosen


def _crops(known: Mapping[str, Any], data: DataFacts, machine: MachineFacts) -> dict[str, Choice]:
    preset = PRESETS.get(str(known.get("student.preset")), {})
    patch = _int(known, "student.patch_size", preset.get("patch_size", 14))
    side, gpu = data.short_side, machine.device == "cuda"
    grid = max(min(side // patch, _GRID_GPU if gpu else _GRID_CPU), 2)
    size = _int(known, "crops.global_size", grid * patch)
    local = -(-size * 7 // 16 // patch) * patch
    chosen = {
        "crops.global_size": Choice(size, f"images of about {side} pixels, patches of {patch}"),
        "crops.local_size": Choice(local, "about 7/16 of the global crops, as published"),
    }
    if side < 96:
        chosen["crops.global_scale"] = Choice((0.4, 1.0), "smaller parts of such small images show too little")
        chosen["crops.local_scale"] = Choice((0.2, 0.6), "smaller parts of such small images show too little")
    if size < _BLURRED:
        chosen["crops.blur"] = Choice("none", f"crops of {size} pixels have no detail to lose")
    if not gpu:
        chosen["crops.local_number"] = Choice(4, "half of the published number, for a CPU")
    if size // patch < 8:
        chosen["masks.min_block"] = Choice(1, f"there are only {size // patch} by {size // patch} patches")
    return chosen


def _length(known: Mapping[str, Any], data: DataFacts, machine: MachineFacts) -> dict[str, Choice]:
    gpu = machine.device == "cuda"
    batch = _batch_size(known, data, machine)
    size = _int(known, "train.batch_size", batch) or batch
    chosen = {"train.batch_size": Choice(batch, "fits the GPU's memory" if gpu else "for a CPU")}
    if known.get("train.epochs"):
        return chosen
    passes = 100 if data.images >= 500_000 else 400
    budget = data.images * passes if gpu else min(500_000, data.images * passes)
    why = f"{budget / data.images:.3g} passes over the {data.images} images" + ("" if gpu else "; more is better")
    chosen["train.iterations"] = Choice(max(round(budget / size), 100), why)
    return chosen


def _steps(known: Mapping[str, Any], data: DataFacts, otherwise: int) -> int:
    """Steps of the run, where its length is known in steps or in passes over the data."""
    epochs, batch = known.get("train.epochs"), _int(known, "train.batch_size", _BATCH)
    if isinstance(epochs, int | float) and not isinstance(epochs, bool) and 0 < epochs < math.inf:
        return max(math.ceil(epochs * data.images / batch), 1)
    return _int(known, "train.iterations", otherwise)


def _batch_size(known: Mapping[str, Any], data: DataFacts, machine: MachineFacts) -> int:
    """A power of two that the device's memory holds, no larger than the data set."""
    if machine.device == "cpu":
        per_process = 64
    else:
        shape = PRESETS.get(str(known.get("student.preset")), {})
        patch = _int(known, "student.patch_size", shape.get("patch_size", 14))
        tokens = 2 * (_int(known, "crops.global_size", 224) // patch) ** 2
        tokens += 8 * (_int(known, "crops.local_size", 98) // patch) ** 2
        # Activations of a block in bfloat16, from the shapes of its products: about 34 bytes a token and channel.
        width = _int(known, "student.embed_dim", shape.get("embed_dim", 384))
        bytes_per_image = 34 * tokens * width * _int(known, "student.depth", shape.get("depth", 12))
        per_process = 2 ** int(math.log2(max(0.5 * machine.memory / bytes_per_image, 2)))
        per_process = min(per_process, 512)
    whole = per_process * machine.processes
    while whole > data.images and whole > 2 * machine.processes:
        whole //= 2
    return whole


def _int(known: Mapping[str, Any], key: str, otherwise: int) -> int:
    """A given whole number; what is of another type is left to the check of all settings."""
    value = known.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else otherwise


def _value_range(values: Values | None) -> tuple[float, float] | None:
    """What becomes 0 and 1, where it is not what the type of the pixels says: 16 bits, or floats of 0 to 1."""
    if values is None or values.low == values.high or (values.low >= 0 and values.high <= 1):
        return None
    if not values.whole:
        return float(math.floor(values.low)), float(math.ceil(values.high))
    tops = (2**bits - 1 for bits in _DEPTHS)
    top = next((top for top in tops if values.high <= top), None)
    return None if top is None else (0.0, float(top))
