"""Images against Pillow's own means of turning, cropping and padding them."""

import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from torch_reference import data
from torch_reference.errors import UserError

BILINEAR = Image.Resampling.BILINEAR


def photo(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def pixels_of(path, height, width, channels=3, **options):
    return data.read_images(path, (height, width, channels), **options)[1][0]


@pytest.mark.parametrize(("width", "height"), [(20, 20), (30, 20), (20, 30), (31, 20), (20, 33)])
def test_crop_is_pillows_crop_about_the_centre(width, height, tmp_path):
    image = photo(width, height)
    image.save(tmp_path / "x.png")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((8, 8), BILINEAR)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", 8, 8), np.asarray(expected))


@pytest.mark.parametrize(("width", "height"), [(20, 20), (40, 20), (20, 40), (60, 20)])
def test_pad_is_pillows_pad_where_it_is_even(width, height, tmp_path):
    image = photo(width, height)
    image.save(tmp_path / "x.png")
    expected = ImageOps.pad(image, (12, 12), BILINEAR, color=0)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", 12, 12, image_fit="pad"), np.asarray(expected))


def test_stretch_is_pillows_resize(tmp_path):
    image = photo(30, 20)
    image.save(tmp_path / "x.png")
    expected = np.asarray(image.resize((9, 7), BILINEAR))
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", 7, 9, image_fit="stretch"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_is_pillows(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    photo(12, 8).save(tmp_path / "x.webp", exif=exif, lossless=True)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.webp")).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.webp", *upright.shape), upright)


def test_what_a_file_is_called_does_not_matter(tmp_path):
    for kind in ("PNG", "BMP", "PPM"):
        photo(6, 5).save(tmp_path / "x.jpg", kind)
        np.testing.assert_array_equal(pixels_of(tmp_path / "x.jpg", 5, 6), np.asarray(photo(6, 5)))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "TGA", "ICO"])
def test_what_is_not_read(kind, tmp_path):
    photo(16, 16).save(tmp_path / "x.png", kind)
    with pytest.raises(UserError, match=r"x\.png is not an image that can be read"):
        pixels_of(tmp_path / "x.png", 8, 8)


@pytest.mark.parametrize(("width", "height"), [(8, 16_777_225), (20_001, 1), (10_001, 10_001), (2**31 - 1, 2**31 - 1)])
def test_a_small_file_of_many_pixels(width, height, tmp_path):
    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(UserError, match=r"x\.png"):
        pixels_of(tmp_path / "x.png", 8, 8)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_test_split_by_other_names(name, tmp_path):
    for place in ("train/a", "train/b", f"{name}/a", f"{name}/b"):
        (tmp_path / place).mkdir(parents=True)
        photo(9, 9).save(tmp_path / place / "1.png")
    dataset = data.load(str(tmp_path))
    assert (len(dataset.train.labels), dataset.test.labels.tolist()) == (2, [0, 1])
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "test" / "a")
    assert data.load(str(tmp_path)).test.labels.tolist() == [0]  # `test` counts where there are several
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UserError, match="train/CLASS"):
        data.load(str(tmp_path))
