# SPDX-License-Identifier: Apache-2.0
"""How near converted weights are to transformers and timm, and how far the rules of positions are apart.

    python benchmarks/parity.py [preset ...]

Random weights, float32, one thread; largest difference of a channel of a normed token (standard deviation 1). A library
that does not import is left out.
"""

import argparse
import tempfile
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.checkpoint.hub import load_backbone
from opendino.checkpoint.weights import save_weights
from opendino.models.positions import RULES, set_positions
from opendino.models.presets import create
from opendino.models.vision_transformer import VisionTransformer

SIZES = [(98, 98), (224, 224), (336, 336), (518, 518), (546, 546), (602, 602), (1092, 1092), (224, 336)]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="vits14 and vits14_reg4 if none is named")
    presets = parser.parse_args().presets
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for preset in presets or ["vits14", "vits14_reg4"]:
        model = drawn(preset)
        print(f"{preset}: converted weights against the library itself")
        for library in ("transformers", "timm"):
            against(library, model)
    print("vits14: rule of positions against the official one; relative difference of the table")
    rules(drawn("vits14"))


def drawn(preset: str) -> VisionTransformer:
    """Nothing is zero, one or symmetric; the table is smooth with some noise, as learned ones are."""
    model = create(preset).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_(0.3, 0.1)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.1)
            else:
                parameter.normal_(std=0.03)
        smooth = F.interpolate(torch.randn(1, model.embed_dim, 9, 9), size=model.grid, mode="bicubic")
        table = 0.1 * smooth / smooth.std() + 0.02 * torch.randn_like(smooth)
        model.pos_embed[:, 1:] = table.flatten(2).transpose(1, 2)
    return model


@torch.inference_mode()
def against(library: str, source: VisionTransformer) -> None:
    """One line a size."""
    try:
        theirs = import_module(library)
    except ImportError as error:
        print(f"  {library}: left out ({error})")
        return
    with tempfile.TemporaryDirectory() as home:
        save_weights(source, Path(home) / "ours")
        folder = Path(home) / library
        convert(Path(home) / "ours", folder, ConvertConfig("hf" if library == "transformers" else "timm"))
        ours = load_backbone(folder, positions="hf" if library == "transformers" else "timm")
        if library == "transformers":
            model = theirs.AutoModel.from_pretrained(folder).eval()
        else:
            model = theirs.create_model(f"local-dir:{folder}", pretrained=True, dynamic_img_size=True).eval()
        for size in SIZES:
            x = torch.randn(1, 3, *size)
            found = model(x).last_hidden_state if library == "transformers" else model.forward_features(x)
            print(f"  {library} {theirs.__version__} {size[0]}x{size[1]}: {(tokens(ours, x) - found).abs().max():.1e}")


@torch.inference_mode()
def rules(model: VisionTransformer) -> None:
    """One line a size; the largest adds nothing here."""
    for size in (size for size in SIZES if max(size) < 1000):
        x, found, tables = torch.randn(1, 3, *size), {}, {}
        for rule in RULES:
            set_positions(model, rule)
            found[rule], tables[rule] = tokens(model, x), model.bake(size).pos_embed[:, 1:]
        line = [
            f"{rule} {(found[rule] - found['official']).abs().max():.2f} "
            f"({(tables[rule] - tables['official']).norm() / tables['official'].norm():.0%})"
            for rule in ("hf", "timm")
        ]
        print(f"  {size[0]}x{size[1]}: {', '.join(line)}")


def tokens(model: VisionTransformer, x: torch.Tensor) -> torch.Tensor:
    """All normed tokens, CLS first."""
    features = model.forward_features(x)
    cls = features["x_norm_clstoken"][:, None]
    return torch.cat([cls, features["x_norm_regtokens"], features["x_norm_patchtokens"]], dim=1)


if __name__ == "__main__":
    main()
