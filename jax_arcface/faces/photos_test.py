"""From photos to crops: what is refused, EXIF, large faces, files of landmarks."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jax_arcface.errors import UserError
from jax_arcface.faces.alignment import TEMPLATE, align
from jax_arcface.faces.detection import Faces
from jax_arcface.faces.photos import Finder, Portraits, crop, read_all, read_landmarks, read_photo

PHOTO = load_sample_image("flower.jpg")  # 640 x 427
PLACES = np.stack([TEMPLATE + np.array([30, 20]), 1.5 * TEMPLATE + np.array([300, 100])])


class Known:
    """A detector that finds what it was told, and remembers what it was shown."""

    def __init__(self, points):
        self.points = points

    def detect(self, image):
        self.seen = image
        middle = self.points.mean(1)
        boxes = np.concatenate([middle - 40, middle + 40], 1)
        return Faces(boxes.astype(np.float32), np.ones(len(boxes), np.float32), self.points.astype(np.float32))


@pytest.fixture
def file(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_crops_are_alignments(file):
    found = Finder(Known(PLACES), which="all").read(file)
    np.testing.assert_array_equal(found.crops, align(PHOTO[None], PLACES, np.zeros(2, int)))
    np.testing.assert_allclose([q.size for q in found.quality], 80, rtol=1e-5)
    np.testing.assert_array_equal(found.photo, PHOTO)
    assert Finder(Known(PLACES), which="all", size=128).read(file).crops.shape == (2, 128, 128, 3)


def test_one_face_is_chosen_or_several_are_refused(file):
    first = Finder(Known(PLACES[:1])).read(file).crops
    assert first.shape == (1, 112, 112, 3)
    for finder in (Finder(Known(PLACES)), Finder(Known(PLACES[:0])), Finder(Known(PLACES), min_size=81)):
        with pytest.raises(UserError) as error:
            finder.read(file)
        assert "\n" not in str(error.value)
    central = Finder(Known(PLACES), which="central").read(file)
    np.testing.assert_array_equal(central.faces.points[0], PLACES[1].astype(np.float32))
    with pytest.raises(ValueError, match="first"):
        Finder(which="first")


def test_a_photo_is_turned_as_its_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PHOTO)).save(tmp_path / "turned.png", exif=exif)
    detector = Known(PLACES)
    found = Finder(detector, which="all").read(tmp_path / "turned.png")
    np.testing.assert_array_equal(detector.seen, PHOTO)
    np.testing.assert_array_equal(found.crops, align(PHOTO[None], PLACES, np.zeros(2, int)))


def test_grey_photos(tmp_path):
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / "grey.pgm")
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.pgm"), np.repeat(PHOTO[..., :1], 3, axis=2))


def test_a_large_face_is_not_read_at_every_sixth_pixel():
    """Its crop shows what that of a photo with a sixth of the sides does, not the noise of single pixels."""
    small = PHOTO[:160, :160]
    large = np.kron(small, np.ones((6, 6, 1), np.uint8)).astype(np.int16)
    large += np.random.default_rng(0).integers(-60, 61, (960, 960, 1), np.int16)
    found = crop(np.clip(large, 0, 255).astype(np.uint8), 6 * (PLACES[:1] + 0.5) - 0.5)
    expected = np.asarray(align(small[None], PLACES[:1])).astype(int)
    assert np.abs(found - expected).mean() < 8  # a sixth of the noise; 26 without


def test_without_a_detector_the_photo_is_the_crop(tmp_path):
    Image.fromarray(PHOTO[:112, :112]).save(tmp_path / "crop.png")
    found = Finder().read(tmp_path / "crop.png")
    np.testing.assert_array_equal(found.crops, PHOTO[None, :112, :112])
    assert len(found.faces) == len(found.quality) == 0


def test_landmarks(tmp_path, file):
    lines = [f"{name} {' '.join(str(v) for v in p.ravel())}" for name, p in zip(("photo.png", "x/photo.png"), PLACES)]  # noqa: B905
    path = tmp_path / "points.txt"
    path.write_text("\n".join([*lines, "", lines[0]]))
    landmarks = read_landmarks(path)
    np.testing.assert_array_equal(landmarks["photo.png"], PLACES[[0, 0]])
    (tmp_path / "x").mkdir()
    file.rename(tmp_path / "x" / "photo.png")
    found = Finder(landmarks=landmarks).read(tmp_path / "x" / "photo.png")  # the longest name that fits
    np.testing.assert_array_equal(found.crops, align(PHOTO[None], PLACES[1:]))
    Image.fromarray(PHOTO).save(tmp_path / "other.png")
    with pytest.raises(UserError, match="landmarks"):
        Finder(landmarks=landmarks).read(tmp_path / "other.png")


@pytest.mark.parametrize(
    "content", ["", "a.jpg 1 2 3", "a.jpg" + " 1" * 10, "a.jpg 1 2 3 4 5 6 7 8 9 nan", "1 2 3 4 5 6 7 8 9 x", "\0\xff"]
)
def test_what_is_no_file_of_landmarks(content, tmp_path):
    (tmp_path / "points.txt").write_text(content)
    with pytest.raises(UserError) as error:
        read_landmarks(tmp_path / "points.txt")
    assert "\n" not in str(error.value)


def test_bad_photos_do_not_end_a_row_of_them(tmp_path, file):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (10_400, 10_000)).save(bomb)
    (tmp_path / "text.jpg").write_text("no photo")
    results = list(read_all([bomb, file, tmp_path / "text.jpg", tmp_path / "missing.jpg"], Finder(Known(PLACES[:1]))))
    assert [isinstance(result, Portraits) for result in results] == [False, True, False, False]
    assert isinstance(results[0], UserError)
