"""Makes the references: small files, and what decoders that are not ours show of them.

    python tests/references/make.py

It needs Chromium, and libvips for what Chromium does not show (TIFF) or gets wrong (the black of
small CMYK profiles). Beside each file of ``files`` comes its picture in ``shown``, as an RGB PNG.
Chromium's come from a canvas filled with white, with sRGB forced as the colour profile.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

HERE = Path(__file__).resolve().parent
FILES, SHOWN = HERE / "files", HERE / "shown"
BY_VIPS = re.compile(r".*\.tif|cmyk-profile\.jpg")

# ---------------------------------------------------------------- profiles


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_tags(profile: bytes, data: dict[bytes, bytes]) -> bytes:
    """``profile`` with the data of some of its tags replaced by data no longer than it."""
    changed = bytearray(profile)
    (count,) = struct.unpack_from(">I", profile, 128)
    for tag, offset, size in struct.iter_unpack(">4sII", profile[132 : 132 + 12 * count]):
        if tag in data:
            changed[offset : offset + size] = data[tag].ljust(size, b"\0")
    return bytes(changed)


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def primaries(red: Any, green: Any, blue: Any) -> dict[bytes, bytes]:
    """Of these tristimulus values under D50."""
    names = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue}
    return {tag: b"XYZ \0\0\0\0" + fixed(*value) for tag, value in names.items()}


def power(gamma: float) -> dict[bytes, bytes]:
    curve = b"para" + bytes(8) + fixed(gamma)
    return dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)


def display_p3() -> bytes:
    red, green, blue = (0.5151, 0.2412, -0.0011), (0.292, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    return with_tags(srgb(), primaries(red, green, blue))


def wide() -> bytes:
    """ProPhoto's primaries, and its exponent."""
    red, green, blue = (0.7977, 0.288, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)
    return with_tags(srgb(), primaries(red, green, blue) | power(1.8))


def profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    tags = {b"wtpt": white, **tags}
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    header = struct.pack(">I4x4s4s4s4s", size, b"\2\x40\0\0", kind, space, connection)
    header = header.ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def grey(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": curve})


def inks() -> bytes:
    """CMYK by a table: inks that are far from the pure ones that are assumed without a profile."""
    colours = np.array([[0.1, 0.3, 0.6], [0.6, 0.1, 0.3], [0.9, 0.8, 0.1], [0.15, 0.15, 0.15]])
    nodes = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = np.prod(1 - nodes[:, :, None] * (1 - colours), axis=1)  # linear, in sRGB's primaries
    to_xyz = np.array(
        [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
    )
    f = np.cbrt(np.maximum(light @ to_xyz.T / (0.9642, 1.0, 0.8249), 0.01))
    lab = (116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2]))
    table = np.stack([lab[0] * 2.55, lab[1] + 128, lab[2] + 128], 1).round().astype(np.uint8)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 5, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += ramp * 4 + table.tobytes() + ramp * 3
    return profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})


# ---------------------------------------------------------------- pictures


def patches(channels: int, *, largest: int = 255, seed: int = 5) -> np.ndarray[Any, Any]:
    """[32, 48, channels] in squares of 8 pixels: what a JPEG keeps; the first are the darkest and
    the brightest."""
    values = np.random.default_rng(seed).integers(0, largest + 1, (4, 6, channels))
    values[0, 0], values[0, 1] = 0, largest
    return np.kron(values, np.ones((8, 8, 1), values.dtype))


def picture(mode: str) -> Image.Image:
    samples = patches(len(Image.new(mode, (1, 1)).getbands())).astype(np.uint8)
    return Image.fromarray(samples.squeeze(), mode)


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(colour_type: int, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """What Pillow does not write: 16 bits, and these ``chunks``."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    samples = patches(channels, largest=2**depth - 1)
    rows = samples.astype(">u2" if depth == 16 else "u1")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 48, 32, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def icc(data: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"profile\0\0" + zlib.compress(data)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def files() -> dict[str, bytes]:
    rgb, rgba, cmyk = picture("RGB"), picture("RGBA"), picture("CMYK")
    cut_out = rgba.copy()
    cut_out.putalpha(rgba.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    palette = rgb.quantize(24)
    lossy = {"quality": 95, "subsampling": 0}
    black_and_white = picture("L").convert("1", dither=Image.Dither.NONE)
    first_16 = patches(1, largest=65535)[0, 20, 0]
    sixteen = Image.fromarray(patches(1, largest=65535).astype(np.uint16).squeeze())
    return {
        "orientation-6.jpg": saved(rgb, "JPEG", exif=oriented(6), **lossy),
        "orientation-5.png": saved(rgb, "PNG", exif=oriented(5)),
        "orientation-8.avif": saved(rgb, "AVIF", exif=oriented(8), quality=95, subsampling="4:4:4"),
        "palette.png": saved(palette, "PNG"),
        "palette.gif": saved(palette, "GIF"),
        "palette.bmp": saved(palette, "BMP"),
        "palette-clear.gif": saved(palette, "GIF", transparency=palette.getpixel((20, 20))),
        "palette-alpha.png": saved(palette, "PNG", transparency=bytes(range(0, 240, 10))),
        "alpha.png": saved(rgba, "PNG"),
        "alpha.webp": saved(rgba, "WEBP", lossless=True),
        # clear or opaque: Chromium takes the alpha of AVIF for video levels
        "alpha.avif": saved(cut_out, "AVIF", quality=95, subsampling="4:4:4"),
        "alpha.tif": saved(rgba, "TIFF"),
        "grey-alpha.png": saved(picture("LA"), "PNG"),
        "grey-alpha-16.png": png(4, 16),
        "grey-16.png": png(0, 16),
        "grey-16-clear.png": png(0, 16, (b"tRNS", struct.pack(">H", first_16))),
        "grey-16.tif": saved(sixteen, "TIFF"),
        "rgb-16.png": png(2, 16),
        "rgba-16.png": png(6, 16),
        "black-and-white.png": saved(black_and_white, "PNG"),
        "black-and-white.bmp": saved(black_and_white, "BMP"),
        "black-and-white.tif": saved(black_and_white, "TIFF", compression="group4"),
        "cmyk.jpg": saved(cmyk, "JPEG", **lossy),
        "cmyk-profile.jpg": saved(cmyk, "JPEG", icc_profile=inks(), **lossy),
        "cmyk-profile.tif": saved(cmyk, "TIFF", icc_profile=inks()),
        "display-p3.jpg": saved(rgb, "JPEG", icc_profile=display_p3(), **lossy),
        "display-p3.webp": saved(rgb, "WEBP", icc_profile=display_p3(), lossless=True),
        "display-p3.avif": saved(
            rgb, "AVIF", icc_profile=display_p3(), quality=95, subsampling="4:4:4"
        ),
        "display-p3.tif": saved(rgb, "TIFF", icc_profile=display_p3()),
        "wide.png": saved(rgb, "PNG", icc_profile=wide()),
        "wide-16.png": png(2, 16, icc(wide())),
        "wide-alpha.png": saved(rgba, "PNG", icc_profile=wide()),
        "wide-palette.png": saved(palette, "PNG", icc_profile=wide()),
        "grey-profile.png": saved(picture("L"), "PNG", icc_profile=grey(1.0)),
        "grey-profile.jpg": saved(picture("L"), "JPEG", icc_profile=grey(1.0), quality=95),
        "grey-profile-alpha.png": saved(picture("LA"), "PNG", icc_profile=grey(1.0)),
        "gamma.png": png(2, 8, gamma(1.0)),
        "gamma-alpha.png": png(6, 8, gamma(1.0)),
        "gamma-grey.png": png(0, 8, gamma(0.2)),
        "gamma-srgb.png": png(2, 8, gamma(1.0), (b"sRGB", b"\0")),
    }


# ---------------------------------------------------------------- what others show

PAGE = """<!doctype html><body>{images}<script>
onload = () => {{
  const shown = {{}};
  for (const image of document.images) {{
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", {{willReadFrequently: true}});
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    const {{data}} = context.getImageData(0, 0, canvas.width, canvas.height);
    shown[image.alt] = [canvas.width, canvas.height, btoa(String.fromCharCode(...data))];
  }}
  document.body.textContent = JSON.stringify(shown);
}}
</script></body>"""


def by_chromium(names: list[str]) -> None:
    types = {"jpg": "jpeg"}
    images = ""
    for name in names:
        media = types.get(ending := name.rpartition(".")[2], ending)
        body = base64.b64encode((FILES / name).read_bytes()).decode()
        images += f'<img alt="{name}" src="data:image/{media};base64,{body}">'
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(PAGE.format(images=images))
        command = ["chromium", "--headless", "--no-sandbox", "--force-color-profile=srgb"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=10000"]
        told = subprocess.run(
            [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True
        )
    found = re.search(r"<body>(\{.*\})</body>", told.stdout, re.DOTALL)
    assert found, told.stderr
    for name, (width, height, pixels) in json.loads(html.unescape(found[1])).items():
        assert width, f"Chromium does not show {name}"
        image = Image.frombytes("RGBA", (width, height), base64.b64decode(pixels))
        image.convert("RGB").save(SHOWN / f"{name}.png", optimize=True)


def by_vips(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, srgb_, flat = FILES / name, Path(folder, "srgb.v"), SHOWN / f"{name}.png"
        with Image.open(file) as image:
            tagged, clear = "icc_profile" in image.info, image.mode == "RGBA"
        how = ["icc_transform", file, srgb_, "srgb", "--embedded", "--intent", "perceptual"]
        if not tagged:
            how = ["colourspace", file, srgb_, "srgb"]
        subprocess.run(["vips", *how], check=True)
        how = ["flatten", srgb_, flat, "--background", "255"] if clear else ["copy", srgb_, flat]
        subprocess.run(["vips", *how], check=True)
    with Image.open(flat) as image:
        image.convert("RGB").save(flat, optimize=True)


def main() -> None:
    for folder in (FILES, SHOWN):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    contents = files()
    for name, body in contents.items():
        (FILES / name).write_bytes(body)
    by_chromium([name for name in contents if not BY_VIPS.fullmatch(name)])
    for name in contents:
        if BY_VIPS.fullmatch(name):
            by_vips(name)


if __name__ == "__main__":
    main()
