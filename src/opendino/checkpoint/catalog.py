# SPDX-License-Identifier: Apache-2.0
"""The published DINOv2 weights by name: where they are, what is in them, what images they expect.

`find` takes a name and its usual spellings. Reading a file from here needs no network; getting one is `_fetch.py`.
"""

import difflib
from dataclasses import dataclass
from types import MappingProxyType

from opendino.data.normalization import IMAGENET_MEAN, IMAGENET_STD

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/dinov2"
_SIZES = MappingProxyType({"official": (224, 224), "hf": (224, 224), "timm": (518, 518)})
_TIMM_TAG = ".lvd142m"


_SHA256 = MappingProxyType(
    {
        "vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        "vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        "vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        "vitg14": "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3",
        "vits14_reg4": "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
        "vitb14_reg4": "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",
        "vitl14_reg4": "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
        "vitg14_reg4": "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283",
    }
)
"""Preset -> SHA-256 of the official backbone's file.

Source: the official repository publishes none. Projects that pin the files they downloaded from `OFFICIAL_URL` do;
    each of these was found alike in three or more of them, all eight in the conversion script of refiners.
"""


@dataclass(frozen=True)
class Entry:
    """One published model.

    Attributes:
        name: what `opendino.load` takes.
        source: "official", "hf" or "timm": the format, and the rule of its position table.
        preset: architecture, a name of `opendino.models.presets.PRESETS`.
        parameters: numbers in `file`.
        heads: how many blocks a linear classifier reads; official heads are files of their own.
        sha256: of `file`; checked where it is given. The hub says it of its files itself, see `_fetch.check_file`.
        licence: of the weights.
        mean: of each channel, on a scale where images lie in [0, 1].
        std: of each channel.
    """

    name: str
    source: str
    preset: str
    parameters: int
    heads: tuple[int, ...] = ()
    sha256: str | None = None
    licence: str = "Apache-2.0"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def home(self) -> str:
        """Folder below `OFFICIAL_URL`, or repository on the Hugging Face hub."""
        if self.source == "official":
            return self.name.removesuffix("_lc").removesuffix("_reg")
        return self.name if self.source == "hf" else f"timm/{self.name}"

    @property
    def file(self) -> str:
        """Name of the weights file."""
        if self.source == "official":
            return f"{self.home}{'_reg4' if '_reg' in self.name else ''}_pretrain.pth"
        return "model.safetensors"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the float32 numbers in `file`, which is a little larger by its names; less means cut short."""
        return 4 * self.parameters

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the source evaluates at."""
        return _SIZES[self.source]

    def head_file(self, layers: int) -> str:
        """The official file of a linear classifier over that many blocks."""
        return self.file.replace("_pretrain", f"_linear{'' if layers == 1 else layers}_head")

    def url(self, file: str) -> str:
        """Where a file of this entry is published."""
        if self.source == "official":
            return f"{OFFICIAL_URL}/{self.home}/{file}"
        return f"https://huggingface.co/{self.home}/resolve/main/{file}"


HEADS, ONE = (1, 4), (1,)
"""Blocks that published classifiers read: official ones come in two kinds, those on the hub in one."""

ENTRIES: tuple[Entry, ...] = (
    # the official repository; torch.hub keeps these files
    Entry("dinov2_vits14", "official", "vits14", 22_056_576, (), _SHA256["vits14"]),
    Entry("dinov2_vitb14", "official", "vitb14", 86_580_480, (), _SHA256["vitb14"]),
    Entry("dinov2_vitl14", "official", "vitl14", 304_368_640, (), _SHA256["vitl14"]),
    Entry("dinov2_vitg14", "official", "vitg14", 1_136_480_768, (), _SHA256["vitg14"]),
    Entry("dinov2_vits14_reg", "official", "vits14_reg4", 22_058_112, (), _SHA256["vits14_reg4"]),
    Entry("dinov2_vitb14_reg", "official", "vitb14_reg4", 86_583_552, (), _SHA256["vitb14_reg4"]),
    Entry("dinov2_vitl14_reg", "official", "vitl14_reg4", 304_372_736, (), _SHA256["vitl14_reg4"]),
    Entry("dinov2_vitg14_reg", "official", "vitg14_reg4", 1_136_486_912, (), _SHA256["vitg14_reg4"]),
    Entry("dinov2_vits14_lc", "official", "vits14", 22_056_576, HEADS, _SHA256["vits14"]),
    Entry("dinov2_vitb14_lc", "official", "vitb14", 86_580_480, HEADS, _SHA256["vitb14"]),
    Entry("dinov2_vitl14_lc", "official", "vitl14", 304_368_640, HEADS, _SHA256["vitl14"]),
    Entry("dinov2_vitg14_lc", "official", "vitg14", 1_136_480_768, HEADS, _SHA256["vitg14"]),
    Entry("dinov2_vits14_reg_lc", "official", "vits14_reg4", 22_058_112, HEADS, _SHA256["vits14_reg4"]),
    Entry("dinov2_vitb14_reg_lc", "official", "vitb14_reg4", 86_583_552, HEADS, _SHA256["vitb14_reg4"]),
    Entry("dinov2_vitl14_reg_lc", "official", "vitl14_reg4", 304_372_736, HEADS, _SHA256["vitl14_reg4"]),
    Entry("dinov2_vitg14_reg_lc", "official", "vitg14_reg4", 1_136_486_912, HEADS, _SHA256["vitg14_reg4"]),
    # Hugging Face's models; a classifier is in the same file
    Entry("facebook/dinov2-small", "hf", "vits14", 22_056_576),
    Entry("facebook/dinov2-base", "hf", "vitb14", 86_580_480),
    Entry("facebook/dinov2-large", "hf", "vitl14", 304_368_640),
    Entry("facebook/dinov2-giant", "hf", "vitg14", 1_136_480_768),
    Entry("facebook/dinov2-with-registers-small", "hf", "vits14_reg4", 22_058_112),
    Entry("facebook/dinov2-with-registers-base", "hf", "vitb14_reg4", 86_583_552),
    Entry("facebook/dinov2-with-registers-large", "hf", "vitl14_reg4", 304_372_736),
    Entry("facebook/dinov2-with-registers-giant", "hf", "vitg14_reg4", 1_136_486_912),
    Entry("facebook/dinov2-small-imagenet1k-1-layer", "hf", "vits14", 22_825_576, ONE),
    Entry("facebook/dinov2-base-imagenet1k-1-layer", "hf", "vitb14", 88_117_480, ONE),
    Entry("facebook/dinov2-large-imagenet1k-1-layer", "hf", "vitl14", 306_417_640, ONE),
    Entry("facebook/dinov2-giant-imagenet1k-1-layer", "hf", "vitg14", 1_139_553_768, ONE),
    Entry("facebook/dinov2-with-registers-small-imagenet1k-1-layer", "hf", "vits14_reg4", 22_827_112, ONE),
    Entry("facebook/dinov2-with-registers-base-imagenet1k-1-layer", "hf", "vitb14_reg4", 88_120_552, ONE),
    Entry("facebook/dinov2-with-registers-large-imagenet1k-1-layer", "hf", "vitl14_reg4", 306_421_736, ONE),
    Entry("facebook/dinov2-with-registers-giant-imagenet1k-1-layer", "hf", "vitg14_reg4", 1_139_559_912, ONE),
    # timm: without the mask token, register models also without the position of CLS
    Entry("vit_small_patch14_dinov2.lvd142m", "timm", "vits14", 22_056_192),
    Entry("vit_base_patch14_dinov2.lvd142m", "timm", "vitb14", 86_579_712),
    Entry("vit_large_patch14_dinov2.lvd142m", "timm", "vitl14", 304_367_616),
    Entry("vit_giant_patch14_dinov2.lvd142m", "timm", "vitg14", 1_136_479_232),
    Entry("vit_small_patch14_reg4_dinov2.lvd142m", "timm", "vits14_reg4", 22_057_344),
    Entry("vit_base_patch14_reg4_dinov2.lvd142m", "timm", "vitb14_reg4", 86_582_016),
    Entry("vit_large_patch14_reg4_dinov2.lvd142m", "timm", "vitl14_reg4", 304_370_688),
    Entry("vit_giant_patch14_reg4_dinov2.lvd142m", "timm", "vitg14_reg4", 1_136_483_840),
)
CATALOG = MappingProxyType({entry.name: entry for entry in ENTRIES})
"""Every published model by name."""


def find(name: str) -> Entry | None:
    """The entry of a name, or of a usual spelling of it; None where there is none.

    `dinov2_vits14_reg4` is also taken for `dinov2_vits14_reg`, `timm/...` and `hf-hub:...` stand before a name, and a
    timm name may come without its tag.
    """
    name = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
    if name.startswith("dinov2_"):
        name = name.replace("_reg4", "_reg")
    return CATALOG.get(name) or CATALOG.get(name + _TIMM_TAG)


def nearest(name: str) -> str | None:
    """The published name that a name was perhaps meant to be."""
    return next(iter(difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.8)), None)
