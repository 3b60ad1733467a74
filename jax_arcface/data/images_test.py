"""Images come out as Pillow has them, fitted by the rule of the recipe; what is no image costs nothing."""

import io
import struct
import subprocess
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jax_arcface import data
from jax_arcface.errors import UserError


def noise(height, width, channels=3):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def read(path, height, width, channels=3, fit="crop"):
    return data.read_images(path, (height, width, channels), image_fit=fit)[1][0]


# ---- fitting to a size


def by_the_recipe(pixels, height, width, fit):
    """docs/recipe.md, Data, in numpy; only to resize is Pillow's."""

    def resize(pixels, width, height):
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    h, w = pixels.shape[:2]
    if fit == "stretch":
        return resize(pixels, width, height)
    if fit == "crop":
        cut_w, cut_h = min(w, max(1, h * width // height)), min(h, max(1, w * height // width))
        x, y = (w - cut_w) // 2, (h - cut_h) // 2
        return resize(pixels[y : y + cut_h, x : x + cut_w], width, height)
    inner_w, inner_h = min(width, max(1, w * height // h)), min(height, max(1, h * width // w))
    black = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner_w) // 2, (height - inner_h) // 2
    black[y : y + inner_h, x : x + inner_w] = resize(pixels, inner_w, inner_h)
    return black


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(10, 10), (9, 14), (14, 9), (1, 50), (50, 1), (33, 32)])
@pytest.mark.parametrize("target", [(8, 8), (16, 16), (6, 11)])
def test_images_are_fitted_as_the_recipe_says(fit, size, target, tmp_path):
    pixels = noise(*size)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png", *target, fit=fit), by_the_recipe(pixels, *target, fit))


def test_fits_are_what_their_names_say(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200  # the middle square
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png", 10, 10, fit="crop") == 200).all()
    padded = read(tmp_path / "x.png", 10, 10, fit="pad")
    assert not padded[[0, 1, 8, 9]].any()
    assert padded[2:7, 3:7].all()
    assert (read(tmp_path / "x.png", 10, 10, fit="stretch")[:, 4:6] == 200).all()


def test_an_unknown_fit_and_one_without_effect_are_mistakes(tmp_path):
    for options in ({"image_fit": "squeeze"}, {"image_fit": "pad", "image_size": 9}, {"image_fit": "pad"}):
        with pytest.raises(UserError):
            data.load("digits", **options)
    with pytest.raises(UserError):
        data.load(str(tmp_path), image_fit="pad", cache_dir=tmp_path)


# ---- what is read


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_photos_are_turned_upright(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(16, 24)).save(tmp_path / f"x.{kind}", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"x.{kind}")).convert("RGB"))
    assert upright.shape[:2] == ((24, 16) if orientation in (5, 6, 7, 8) else (16, 24))
    np.testing.assert_array_equal(read(tmp_path / f"x.{kind}", *upright.shape), upright)


def test_a_folder_of_photos_that_lie_and_stand_has_one_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(noise(8, 12)).save(tmp_path / "pets" / name / "1.png", exif=exif)
        Image.fromarray(noise(12, 8)).save(tmp_path / "pets" / name / "2.png")
    assert data.load(str(tmp_path / "pets"), cache_dir=tmp_path / "cache").image_shape == (12, 8, 3)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {}), ("webp", {"lossless": True}), ("bmp", {}), ("ppm", {}), ("pgm", {})],
)
def test_the_content_decides_and_not_the_name(suffix, options, tmp_path):
    image = Image.fromarray(noise(6, 5)).convert("L" if suffix == "pgm" else "RGB")
    image.save(tmp_path / f"x.{suffix}", **options)
    expected = np.asarray(Image.open(tmp_path / f"x.{suffix}").convert("RGB"))
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.jpeg")
    np.testing.assert_array_equal(read(tmp_path / "x.jpeg", 6, 5), expected)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "TGA", "ICO", "PCX", "SGI", "PDF", "JPEG2000", "AVIF"])
def test_other_formats_are_refused_and_run_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    file = io.BytesIO()
    try:
        Image.fromarray(noise(16, 16)).save(file, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    (tmp_path / "x.png").write_bytes(file.getvalue())
    with pytest.raises(UserError, match=r"x\.png is not an image that can be read"):
        read(tmp_path / "x.png", 8, 8)


# ---- what must not cost time or memory


def png(width, height, mode=0):
    """A PNG whose few bytes claim so many pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


LARGE = {
    "png": png(8, 16_777_225),
    "square png": png(10_001, 10_000),
    "square rgb png": png(15_000, 15_000, 2),
    "enormous png": png(2**31 - 1, 2**31 - 1),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm": b"P6 20001 2 255\n",
    "webp": b"RIFF\x1e\0\0\0WEBPVP8X\n\0\0\0" + bytes(4) + (16382).to_bytes(3, "little") * 2 + b"VP8L\0\0\0\0",
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE.keys())
def test_too_many_pixels_are_refused_at_once(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    start = time.process_time()
    with pytest.raises(UserError, match=r"x\.png"):
        read(tmp_path / "x.png", 8, 8)
    assert time.process_time() - start < 1  # decoding takes ten


def test_a_good_image_of_many_pixels_is_read(tmp_path):
    Image.new("L", (20_000, 30), 7).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png", 2, 2) == 7).all()
