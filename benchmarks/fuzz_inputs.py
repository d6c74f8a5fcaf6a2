# SPDX-License-Identifier: Apache-2.0
"""Malformed inputs for `fuzz.py`: whole files of each kind, ways to break them, and the readers that refuse them.

A target makes its readers ready in a folder and gives one function, from a source of chance to nothing: it makes one
input, hands it to the reader and lets what the reader raises pass.

python benchmarks/fuzz_inputs.py --help
"""

import argparse
import copy
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from opendino.checkpoint import store
from opendino.checkpoint.hub import open_model
from opendino.checkpoint.weights import save_weights
from opendino.config import load
from opendino.data.datasets import open_dataset
from opendino.data.decode import decode
from opendino.data.fast import missing_package
from opendino.data.photo import open_photo
from opendino.errors import DataError
from opendino.export.heads import with_head
from opendino.models.vision_transformer import VisionTransformer
from opendino.search.index import Index
from opendino.stages.folder import Stage, counts_of
from opendino.train import run_folder
from opendino.train.config import PretrainConfig

Case = Callable[[random.Random], None]
SMALL, LARGE = (0, 1, 2, 255, 256), (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def broken(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four things wrong: bits, cuts, repeats, numbers that are far too large, another's bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.5 else rng.randrange(min(len(out), 256) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randrange(64)]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randrange(64))
        elif kind == 4:
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(SMALL + LARGE) & 0xFFFFFFFF)
        elif kind == 5:
            out[at : at + 8] = struct.pack(rng.choice("<>") + "Q", rng.choice(SMALL + LARGE))
        elif kind == 6:
            out[at:at] = out[at : at + 64] * rng.randrange(1, 20)
        else:
            out += rng.randbytes(rng.randrange(64))
    return bytes(out)


WORDS = (
    "null", "true", "off", "nan", ".inf", "-1", "0", "1e999", "2020-13-45", "0x", "1:99:99", "[", "{", "*a", "&a", "'",
    "!!int x", "!!python/object/apply:os.system [ls]", "9" * 5000, "[" * 3000, "{a: " * 2000, "&a [*a]", "&a {b: *a}",
    "\x00", "\x85", "\ud800", "- ? :", "<<: {}", "<<: *a", "!!binary x", "!!set {a, b}", "? [1, 2] : 3", "key: 1", "-",
    "~", "''", "..", "train.batch_size", "../../etc/passwd", "2001-12-14t21:59:43.10-05:00", "!!timestamp x",
    "!!float x", "=", "0b2", "0o9", "%",
)  # fmt: skip


def _recipe(rng: random.Random, text: str, keys: Sequence[str]) -> bytes:
    """YAML with lines, values and keys exchanged."""
    lines = text.splitlines()
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(WORDS)
        elif kind == 1:
            lines[at] = f"{rng.choice(keys)}: {rng.choice(WORDS)}"
        elif kind == 2:
            lines[at] = " " * rng.randrange(9) + rng.choice(WORDS) + rng.choice(("", ":", ": ", " :x"))
        elif kind == 3:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            lines[at] = lines[at].replace(rng.choice(": {}[]-"), rng.choice(WORDS[:6]), 1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def laughs(levels: int) -> str:
    """YAML of a few lines whose aliases, opened, are ten to the power of `levels` settings."""
    rows = ["a0: &a0 {x: 1}"]
    rows += [f"a{n + 1}: &a{n + 1} {{{', '.join(f'k{i}: *a{n}' for i in range(10))}}}" for n in range(levels)]
    return "\n".join(rows)


def config_target(folder: Path) -> Case:
    """Recipes and `key=value` words."""
    from opendino.config import leaves, to_yaml

    text, place = to_yaml(PretrainConfig()), folder / "recipe.yaml"
    keys = list(leaves(PretrainConfig()))

    def case(rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind == 0:
            words = [f"{rng.choice((*keys, 'a', '', 'train', '.'))}{rng.choice(('=', '=', ''))}{rng.choice(WORDS)}"]
            load(PretrainConfig, None, words * rng.randrange(1, 3))
            return
        place.write_bytes(broken(text.encode(), rng) if kind == 1 else _recipe(rng, text, keys))
        if rng.random() < 0.01:
            place.write_text(laughs(rng.randrange(1, 12)), encoding="utf-8")
        load(PretrainConfig, place)

    return case


def pictures() -> list[tuple[str, bytes]]:
    """One small image of every common format and mode, encoded."""
    rng, found = np.random.default_rng(0), []
    grey, colour = rng.integers(0, 255, (24, 20), np.uint8), rng.integers(0, 255, (24, 20, 3), np.uint8)

    def add(kind: str, picture: Image.Image, **more: Any) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **more)
        found.append((kind.lower(), buffer.getvalue()))

    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, flat = Image.fromarray(colour), Image.fromarray(grey)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "SGI", "PCX", "JPEG2000", "AVIF", "DDS"):
        if kind not in Image.SAVE:
            continue
        add(kind, rgb, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    add("JPEG", flat, progressive=True)
    add("JPEG", rgb.convert("CMYK"))
    add("PNG", rgb.convert("RGBA"))
    add("PNG", rgb.convert("P"), transparency=0)
    add("PNG", Image.fromarray(grey.astype(np.uint16) * 200))
    add("GIF", rgb.convert("P"), save_all=True, append_images=[flat.convert("P")] * 3)
    add("WEBP", rgb.convert("RGBA"), lossless=True)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        add("TIFF", flat.convert("1") if compression == "group4" else rgb, compression=compression)
    add("TIFF", Image.fromarray(rng.random((24, 20), np.float32)))
    add("TIFF", flat, save_all=True, append_images=[flat] * 4)
    for array in (colour, grey, rng.random((24, 20, 5)).astype(np.float32), grey.astype(">u2")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(("npy", buffer.getvalue()))
    found.append(("tif", deep_tiff(rng.integers(0, 255, (24, 20, 7), np.uint8))))
    return found


def deep_tiff(pixels: np.ndarray) -> bytes:
    """An uncompressed TIFF of any number of samples, written here since Pillow writes at most four."""
    height, width, samples = pixels.shape
    body = pixels.tobytes()
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, samples), (278, height),
               (279, len(body)), (284, 1), (339, 1)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    return head + body + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


def bombs(rng: random.Random) -> bytes:
    """A few bytes that say they are gigabytes."""
    side = rng.choice((20_000, 65_535, 100_000, 2**31 - 1))
    kind = rng.randrange(5)
    if kind == 0:
        head = {"descr": rng.choice(("<f8", "|u1", "|O", "<U9")), "fortran_order": False, "shape": (side, side, 3)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, head)
        return buffer.getvalue() + b"\0" * 64
    if kind == 1:
        data = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR") + data + b"\0" * 40
    if kind == 2:
        return b"GIF89a" + struct.pack("<HH", min(side, 65_535), 65_535) + b"\x80\0\0" + b"\0" * 60
    if kind == 3:
        return f"P6 {side} {side} 255\n".encode() + b"\0" * 64
    tile = rng.choice((1, 16, side))
    entries = [(256, side), (257, side), (258, 8), (259, rng.choice((1, 5, 8))), (262, 1), (277, rng.choice((1, 5, 7))),
               (322, tile), (323, tile), (324, 8), (325, 4)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


def image_target(folder: Path) -> Case:
    """Images, by Pillow's way, by the fast way and as arrays, from bytes and from files."""
    whole, fast = pictures(), not missing_package()

    def case(rng: random.Random) -> None:
        suffix, data = rng.choice(whole)
        data = bombs(rng) if rng.random() < 0.05 else broken(data, rng)
        channels = rng.choice((3, 3, 3, 1, 4, 5, 7))
        if fast and rng.random() < 0.3:
            photo = open_photo(data, channels, name="image")
            if photo is not None:
                photo.pixels(rng.choice((1, 2, 8)))
                return
        source: bytes | Path = data
        if rng.random() < 0.2:
            source = folder / f"image.{suffix}"
            source.write_bytes(data)
        decode(source, channels, value_range=rng.choice((None, (0.0, 100.0))))

    return case


def looked_at(source: Path) -> None:
    """Open a data set and what it says of a few of its images."""
    dataset = open_dataset(source)
    for index in {0, len(dataset) // 2, len(dataset) - 1}:
        dataset.identify(index)
        dataset.label(index)
        dataset.image(index)


def _parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer, row_group_size=3)
    return buffer.getvalue()


def _saved(folder: Path, columns: dict[str, Any]) -> None:
    """What `save_to_disk` writes."""
    table = pa.table(columns)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"label": {"names": ["a", "b"]}}}))


ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", -1, 0, 1.5, 2**70, float("nan"), True, [[]], {"a": {}}, "../../x", "a\0b", "\ud800", [1, 2],
    ["a"], 10**9,
)  # fmt: skip


def odd_json(text: str, rng: random.Random) -> bytes:
    """JSON with values exchanged, members gone, or text that is none."""
    if rng.random() < 0.3:
        return broken(text.encode(), rng)
    if rng.random() < 0.03:
        return rng.choice((b"[" * 100_000, b"", b"null", b"NaN", b"9" * 5000, b'{"a":' * 20_000, b"\xff\xfe"))
    content = json.loads(text)
    for _ in range(rng.randrange(1, 3)):
        node, steps = content, rng.randrange(1, 5)
        for step in range(steps):
            if not isinstance(node, dict | list) or not node:
                break
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if step == steps - 1 or not isinstance(node[key], dict | list):
                if rng.random() < 0.3:
                    del node[key]
                else:
                    node[key] = copy.deepcopy(rng.choice(ODD))
                break
            node = node[key]
    return json.dumps(content if rng.random() > 0.02 else rng.choice(ODD)).encode()


def table_target(folder: Path) -> Case:
    """Lists, tables of paths, Parquet of images, manifests, mixtures and saved data sets."""
    encoded = [data for kind, data in pictures() if kind == "png"]
    names = [f"{number}.png" for number in range(len(encoded))]
    for name, data in zip(names, encoded, strict=True):
        (folder / name).write_bytes(data)
    labels, texts = list(range(len(names))), [f"class {number % 2}" for number in range(len(names))]
    rows = "\n".join(f"{name},{label}" for name, label in zip(names, labels, strict=True))
    whole: dict[str, list[bytes]] = {
        "list.txt": ["\n".join(names).encode()],
        "table.csv": [f"path,label\n{rows}\n".encode(), f'path,label\n"{names[0]}","a\nb"\n'.encode()],
        "table.tsv": [f"path\tlabel\n{rows}\n".replace(",", "\t").encode()],
        "mix.yaml": [b"mix:\n  - {data: list.txt, weight: 2}\n  - {data: fixed.csv, weight: 1.5}\nsize: 20\nseed: 3\n"],
        "images.parquet": [
            _parquet({"image": encoded, "label": labels}),
            _parquet({"image": [{"bytes": data, "path": "x"} for data in encoded], "label": texts}),
            _parquet({"image": [*encoded[:-1], None], "label": pa.array(labels).cast(pa.uint64())}),
            _parquet({"image": encoded, "label": [2**62, *labels[1:]]}),
        ],
        "paths.parquet": [_parquet({"path": names, "label": texts}), _parquet({"path": [*names[:-1], None]})],
        "pointers.parquet": [
            _parquet({"source": [str(folder)] * len(names), "key": names, "weight": [*labels[1:], 1], "label": texts}),
            _parquet({"source": ["x.tar"] * 5, "key": ["0+9", "-1+-1", f"{2**70}+1", f"0+{2**62}", "a+b 3"]}),
            _parquet({"source": ["fixed.parquet", None], "key": ["0", None]}),
            _parquet({"source": ["fixed.parquet"] * 2, "key": ["0", str(2**70)], "weight": [2**61, None]}),
            _parquet({"source": [1, 2], "key": [b"\xff", b"\0"]}),
        ],
    }
    (folder / "fixed.csv").write_bytes(whole["table.csv"][0])
    (folder / "fixed.parquet").write_bytes(whole["images.parquet"][0])
    (folder / "x.tar").write_bytes(b"\0" * 2048)
    saved = folder / "saved"
    saved.mkdir()
    _saved(saved, {"image": [{"bytes": data, "path": None} for data in encoded], "label": labels})
    kept = {path.name: path.read_bytes() for path in saved.iterdir()}

    def case(rng: random.Random) -> None:
        name = rng.choice((*whole, "saved"))
        if name != "saved":
            (folder / name).write_bytes(
                broken(rng.choice(whole[name]), rng) if rng.random() < 0.9 else rng.choice(whole[name])
            )
            looked_at(folder / name)
            return
        which = rng.choice(list(kept))
        for file, data in kept.items():
            odd = broken(data, rng) if file.endswith("arrow") else odd_json(data.decode(), rng)
            (saved / file).write_bytes(odd if file == which else data)
        looked_at(saved)

    return case


def _odd_member(archive: tarfile.TarFile, rng: random.Random, number: int, data: bytes) -> None:
    """One member: an image, or a link, a device, a label, with a name and a size of any kind."""
    names = (f"{number}.jpg", "/etc/passwd.jpg", "../../up.jpg", f"{'d/' * 60}x.jpg", "new\nline.jpg", "\udcff.jpg",
             "a" * 300 + ".jpg", ".jpg", "x.JPG", "<b>.jpg")  # fmt: skip
    info = tarfile.TarInfo(rng.choice(names))
    info.size = len(data)
    kind = rng.randrange(6)
    if kind == 0:
        info.type, info.size = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), 0
        info.linkname = rng.choice(("/etc/passwd", "0.jpg", "../x", info.name))
    elif kind == 1:
        info.type, info.size = rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)), 0
    elif kind == 2:
        info.pax_headers = {"size": rng.choice(("-1", "x", str(2**70), "0")), "path": info.name}
    elif kind == 3:
        info.name = f"{number}.cls"
        data = rng.choice((b"1", b"-5", b"x", str(2**70).encode(), b"99999999999", b""))
        info.size = len(data)
    archive.addfile(info, io.BytesIO(data[: info.size]))


def _odd_header(data: bytearray, rng: random.Random) -> None:
    """A block of a tar made into a header with a right sum and a wrong size and kind."""
    at = 512 * rng.randrange(len(data) // 512)
    sizes = (b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"-0000000001\0")
    data[at + 124 : at + 136] = rng.choice(sizes)
    data[at + 156] = rng.choice(b"0S1gxLK7")
    header = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
    data[at + 148 : at + 156] = b"%06o\0 " % sum(header)


def tar_target(folder: Path) -> Case:
    """Tars: odd members among good ones, odd headers, cut anywhere, with the right index and with damaged ones."""
    encoded = [data for kind, data in pictures() if kind == "jpeg"]
    place = folder / "images.tar"

    def case(rng: random.Random) -> None:
        buffer = io.BytesIO()
        kind = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for number in range(rng.randrange(1, 6)):
                _odd_member(archive, rng, number, rng.choice(encoded))
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randrange(3)):
            _odd_header(data, rng)
        place.write_bytes(broken(bytes(data), rng) if rng.random() < 0.6 else bytes(data))
        for index in folder.glob(".*.npz"):
            index.unlink()
        looked_at(place)
        for index in folder.glob(".*.npz"):  # kept now, and of this very tar
            index.write_bytes(broken(index.read_bytes(), rng))
            looked_at(place)

    return case


def _tiny() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1, init_values=1.0)


def _archive(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _repacked(data: bytes, rng: random.Random) -> bytes:
    """A zip archive with one of its members broken, its sums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        which = rng.choice(names)
        for name in names:
            new.writestr(name, broken(old.read(name), rng) if name == which else old.read(name))
    return buffer.getvalue()


def _reheaded(data: bytes, rng: random.Random) -> bytes:
    """Safetensors with another header, its length right."""
    (length,) = struct.unpack("<Q", data[:8])
    head = odd_json(data[8 : 8 + length].decode(), rng)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def odd_state(state: dict[str, Any], rng: random.Random) -> dict[Any, Any]:
    """Weights with tensors of other shapes and types, and names that are missing, doubled or of no model."""
    out: dict[Any, Any] = dict(state)
    for _ in range(rng.randrange(1, 4)):
        if not out:
            break
        name, kind = rng.choice(list(out)), rng.randrange(7)
        if kind == 0:
            del out[name]
        elif kind == 1:
            out[name] = rng.choice(
                (torch.zeros(0), torch.zeros(3, 0, 2), torch.tensor(1.0), torch.ones(7, 5), None, "x", 3)
            )
        elif kind == 2:
            out[f"blocks.{rng.choice((7, 10**4, 10**9))}.norm1.weight"] = torch.ones(64)
        elif kind == 3 and isinstance(out[name], torch.Tensor):
            odd = rng.choice((torch.int8, torch.bool, torch.complex64, torch.float16, torch.float64))
            out[name] = out[name].to(odd)
        elif kind == 4:
            out = {rng.choice(("teacher", "model", "module", "x")): out}
        elif kind == 5:
            out[rng.choice((3, None, ("a",), "x.y", "", "teacher.x", "linear_head.weight"))] = torch.ones(2, 2)
        elif isinstance(out[name], torch.Tensor) and out[name].ndim:
            out[name] = out[name].repeat_interleave(2, dim=rng.randrange(out[name].ndim))
    return out


def weights_target(folder: Path) -> Case:
    """Files and folders of weights: safetensors, torch archives new and old, `config.json`, hashes, indices."""
    backbone = _tiny()
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    ours = folder / "ours"
    save_weights(backbone, ours)
    kept = {path.name: path.read_bytes() for path in ours.iterdir()}
    safe, new, old = save(state), _archive(state), _legacy({"teacher": state})
    theirs = {"model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
              "patch_size": 4, "image_size": 8, "mlp_ratio": 4, "id2label": {"0": "a"}}  # fmt: skip
    timm = {"architecture": "vit_small_patch14_dinov2", "model_args": {"num_heads": 1, "img_size": 8, "depth": 1},
            "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]}}  # fmt: skip

    def one_file(rng: random.Random) -> None:
        kind = rng.randrange(5)
        data = (
            broken(rng.choice((safe, new, old)), rng) if kind == 0
            else _repacked(new, rng) if kind == 1
            else _reheaded(safe, rng) if kind == 2
            else rng.choice((_archive, _legacy))(odd_state(state, rng))
        )  # fmt: skip
        suffix = "safetensors" if data[8:10] == b'{"' or rng.random() < 0.05 else "pth"
        (folder / f"file.{suffix}").write_bytes(data)
        open_model(folder / f"file.{suffix}")

    def one_folder(rng: random.Random) -> None:
        which = rng.choice((*kept, "theirs", "timm", "index"))
        for name, data in kept.items():
            odd = odd_json(data.decode(), rng) if name.endswith("json") else broken(data, rng)
            (ours / name).write_bytes(odd if name == which else data)
        if which == "model.safetensors" and rng.random() < 0.5:
            (ours / "model.safetensors.sha256").unlink()
        if which in ("theirs", "timm"):
            text = json.dumps(theirs if which == "theirs" else timm)
            (ours / "config.json").write_bytes(odd_json(text, rng))
        if which == "index":
            index = {"weight_map": dict.fromkeys(state, "model.safetensors")}
            (ours / "model.safetensors.index.json").write_bytes(odd_json(json.dumps(index), rng))
            open_model(ours / "model.safetensors.index.json")
            return
        open_model(ours)

    return lambda rng: one_file(rng) if rng.random() < 0.5 else one_folder(rng)


def run_target(folder: Path) -> Case:
    """What a run, a stage and an index say of themselves."""
    run = folder / "run"
    run.mkdir()
    stored = run_folder.Stored({}, {"a": 1}, {"images": 3}, ("opendino", "pretrain"))
    config = PretrainConfig()
    run_folder.write(run, config, stored)
    store.save(run, 3, {"student": {"a": torch.ones(3)}, "teacher": {"a": torch.zeros(3)}}, {"seed": 0})
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    stage = Stage(folder / "stage", "embed", {"data": "x"}, {"rows": 3})
    stage.begin()
    (stage.folder / "part-00000.parquet").write_bytes(_parquet({"a": [1]}))
    stage.finish({"images": 1})
    done = {path: path.read_bytes() for path in stage.folder.glob("*.json")}
    index = folder / "index"
    index.mkdir()
    about = {
        "format": "opendino index 1",
        "feature": "cls",
        "model": "m",
        "data": "d",
        "embedded": {},
        "opened": {},
        "search": {},
    }

    def case(rng: random.Random) -> None:
        kind = rng.randrange(3)
        if kind == 2:
            (index / "index.json").write_bytes(odd_json(json.dumps(about), rng))
            np.save(index / "vectors.npy", np.ones((2, 3), np.float32))
            (index / "images.parquet").write_bytes(_parquet({"row": [0, 1], "path": ["a", "b"]}))
            for name in ("vectors.npy", "images.parquet"):
                if rng.random() < 0.3:
                    (index / name).write_bytes(broken((index / name).read_bytes(), rng))
            Index(index)
            return
        for path, data in (files if kind == 0 else done).items():
            odd = odd_json(data.decode(), rng) if path.suffix == ".json" else broken(data, rng)
            path.write_bytes(odd if rng.random() < 0.4 else data)
        if kind == 1:
            if not stage.is_done():
                counts_of(stage.folder)
            return
        found = run_folder.read(run)
        if found is not None:
            run_folder.check_same(run, found, config, {"images": 3})
        newest = store.latest(run)
        if newest is not None:
            store.load(newest)

    return case


def head_target(folder: Path) -> Case:
    """Trained heads beside a backbone."""
    backbone, place = _tiny(), folder / "head.pth"
    heads = [
        {"weight": torch.ones(3, 128), "bias": torch.zeros(3)},
        {"linear_head.weight": torch.ones(3, 128), "linear_head.bias": torch.zeros(3)},
        {f"decode_head.{name}": tensor for name, tensor in {
            "conv_seg.weight": torch.ones(3, 64, 1, 1), "conv_seg.bias": torch.zeros(3), "bn.weight": torch.ones(64),
            "bn.bias": torch.ones(64), "bn.running_mean": torch.ones(64), "bn.running_var": torch.ones(64)}.items()},
        {"conv_depth.weight": torch.ones(16, 128, 1, 1), "conv_depth.bias": torch.zeros(16)},
    ]  # fmt: skip
    told = json.dumps({"data": {"range": [0.001, 10.0]}, "config": {"depth": {"norm": True}}})

    def case(rng: random.Random) -> None:
        state = odd_state(rng.choice(heads), rng)
        place.write_bytes(_archive({"state_dict": state} if rng.random() < 0.3 else state))
        if rng.random() < 0.2:
            place.write_bytes(broken(place.read_bytes(), rng))
        place.with_suffix(".json").write_bytes(odd_json(told, rng))
        with_head(backbone, place, None)

    return case


ADDRESSES = (
    "/embed", "/embed?format=npy", "/pca", "/similar", "/image/-1", "/image/9" + "9" * 30, "/%00", "/../../etc/passwd",
    "/embed?format=%ff", "/similar?k=" + "9" * 5000, "//", "/docs", "/metrics",
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {}, {"authorization": "Bearer \xff"}, {"content-length": "-1"}, {"content-length": "9" * 40},
    {"content-length": "x"}, {"content-type": "image/png; charset=\xff"}, {"x": "a" * 9000},
)  # fmt: skip


def server_target(folder: Path) -> Case:
    """Requests: bodies, forms, headers, addresses and questions; every answer has to be below 500, or 503."""
    from starlette.testclient import TestClient  # pyrefly: ignore[missing-import]  an extra

    from opendino.serve.app import ServeConfig, make_app

    save_weights(_tiny(), folder / "weights")
    words = ["embed.device=cpu", "limits.bytes=200000", "limits.pixels=1000000", "limits.seconds=5"]
    client = TestClient(make_app(str(folder / "weights"), load(ServeConfig, None, words)), raise_server_exceptions=True)
    client.__enter__()
    whole = [data for _, data in pictures()]

    def form(rng: random.Random) -> tuple[bytes, dict[str, str]]:
        parts = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="i"; filename="%s"\r\n\r\n%s\r\n'
            % (rng.choice((b"a", b"../../a", b'"', b"\xff\xfe")), rng.choice(whole))
            for _ in range(rng.randrange(4))
        )
        kind = rng.choice(
            ("multipart/form-data; boundary=x", "multipart/form-data", 'multipart/mixed; boundary="', "multipart/")
        )
        return broken(parts + b"--x--\r\n", rng), {"content-type": kind}

    def case(rng: random.Random) -> None:
        body, headers = form(rng) if rng.random() < 0.4 else (broken(rng.choice(whole), rng), {})
        if rng.random() < 0.1:
            body = bombs(rng)
        path = rng.choice(ADDRESSES)
        coded = {name.encode(): value.encode("latin-1") for name, value in (headers | rng.choice(HEADERS)).items()}
        answer = client.request(rng.choice(("POST", "POST", "POST", "GET", "PUT")), path, content=body, headers=coded)
        if answer.status_code >= 500 and answer.status_code != 503:
            raise AssertionError(f"{path}: {answer.status_code} {answer.text[:200]}")
        if answer.status_code >= 400:
            raise DataError(f"answered by {answer.status_code}")

    return case


TARGETS: dict[str, tuple[Callable[[Path], Case], int]] = {
    "config": (config_target, 1500),
    "image": (image_target, 3000),
    "table": (table_target, 1500),
    "tar": (tar_target, 1000),
    "weights": (weights_target, 1200),
    "run": (run_target, 800),
    "head": (head_target, 300),
    "server": (server_target, 700),
}
"""Name -> what makes it ready, and its share of 10,000 inputs."""


def main() -> None:
    """Say which targets there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for name, (make, share) in TARGETS.items():
        print(f"{name:8s} {share:5d}  {make.__doc__}")


if __name__ == "__main__":
    main()
