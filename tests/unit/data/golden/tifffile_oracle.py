# SPDX-License-Identifier: Apache-2.0
"""Small TIFF files of many layouts, written once by tifffile and imagecodecs of 2026.

`python tifffile_oracle.py` writes `tiff.npz` beside this file: for each case of `CASES` the bytes of a file that holds
`array(...)`, [H, W, C].
"""

import io
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_name("tiff.npz")


def array(dtype, shape=(19, 23, 5)):
    """Slopes and noise from integers alone, in a type."""
    y, x, c = np.indices(shape)
    ramp = 3 * y + 2 * x + (y * 7919 + x * 104729 + c * 31 + x * y * c) % 50
    if np.dtype(dtype).kind == "f":
        return (ramp / 137).astype(dtype)
    return (ramp if dtype == "u1" else ramp * 200).astype(dtype)


CASES = {
    "plain": ("u1", {}),
    "strips": ("u2", {"rowsperstrip": 4}),
    "big_endian": ("u2", {"byteorder": ">", "rowsperstrip": 4}),
    "bigtiff": ("u2", {"bigtiff": True}),
    "deflate": ("u2", {"compression": "zlib", "predictor": 2, "rowsperstrip": 7}),
    "deflate_big_endian": ("u2", {"compression": "zlib", "predictor": 2, "byteorder": ">"}),
    "lzw": ("u1", {"compression": "lzw", "predictor": 2}),
    "packbits": ("u1", {"compression": "packbits"}),
    "tiles": ("u2", {"tile": (16, 16), "compression": "zlib", "predictor": 2}),
    "planes": ("u2", {"planarconfig": "separate", "rowsperstrip": 6}),
    "planes_tiles": ("u1", {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"}),
    "float": ("f4", {"rowsperstrip": 5}),
    "float_predictor": ("f4", {"compression": "zlib", "predictor": 3, "tile": (16, 32)}),
    "double": ("f8", {"compression": "zlib", "predictor": 3}),
    "signed": ("i2", {"compression": "lzw", "predictor": 2}),
    "thirteen": ("u2", {"compression": "zlib", "shape": (8, 6, 13)}),
}


def main():
    import tifffile

    out = {}
    for name, (dtype, options) in CASES.items():
        options = dict(options)
        pixels = array(dtype, options.pop("shape", (19, 23, 5)))
        stored = pixels.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else pixels
        stream = io.BytesIO()
        big = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
        options.setdefault("planarconfig", "contig")
        with tifffile.TiffWriter(stream, **big) as writer:
            writer.write(stored, photometric="minisblack", metadata=None, **options)
        out[name] = np.frombuffer(stream.getvalue(), dtype=np.uint8)
    np.savez_compressed(STORED, **out)
    print(f"{STORED}: {len(CASES)} files, {STORED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
