"""The recipe of `docs/recipe.md`, against a Philox written out here and images moved by hand."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from jax_arcface.data import sampling
from jax_arcface.data.sampling import (
    Augmentation,
    augment,
    balanced_order,
    draw_augmentation,
    epoch_batches,
    generator,
    normal_draws,
)


def philox(key: int, blocks: int) -> list[int]:
    """Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011); numpy counts from 1."""
    mask = 2**64 - 1
    words = []
    for counter in range(1, blocks + 1):
        c, k = [counter, 0, 0, 0], [key & mask, key >> 64]
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
            high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
            c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        words += c
    return words


def test_generator_is_philox_keyed_by_the_text():
    key = int.from_bytes(hashlib.sha256(b"arcface/order/3/17").digest()[:16], "little")
    expected = [(word >> 11) * 2.0**-53 for word in philox(key, 2)]
    assert generator(17, "order", 3).random(8).tolist() == expected


def test_each_purpose_index_and_seed_has_its_own_numbers():
    draws = {
        tuple(generator(seed, purpose, index).random(2))
        for seed in (0, 1)
        for purpose in ("order", "shift")
        for index in (0, 1)
    }
    assert len(draws) == 8


def test_an_epoch_sees_each_example_at_most_once_and_drops_the_remainder():
    batches = epoch_batches(Augmentation(), 0, 0, n=23, batch_size=5, height=4, width=4)
    index = batches["index"]
    assert index.shape == (4, 5)
    assert len(set(index.ravel().tolist())) == 20
    assert set(index.ravel().tolist()) <= set(range(23))
    uniform = generator(0, "order", 0).random(23)
    assert (np.diff(uniform[index.ravel()]) > 0).all()
    other = epoch_batches(Augmentation(), 0, 1, n=23, batch_size=5, height=4, width=4)["index"]
    assert (other != index).any()


def test_augmentation_belongs_to_the_example_not_to_its_place():
    everything = Augmentation(rotate=0.3, zoom=0.2, shift=2, flip=True, cutout=3)
    batches = epoch_batches(everything, 5, 2, n=12, batch_size=3, height=8, width=6)
    by_example = draw_augmentation(everything, 5, 2, 12, 8, 6)
    assert set(batches) == {"index", "affine", "shift", "flip", "cutout"}
    for name, draws in by_example.items():
        np.testing.assert_array_equal(batches[name], draws[batches["index"]])


def test_draws_lie_in_their_ranges_and_reach_the_ends():
    draws = draw_augmentation(Augmentation(rotate=0.3, zoom=0.25, shift=2, flip=True, cutout=4), 1, 0, 4000, 8, 6)
    assert set(np.unique(draws["shift"])) == {0, 1, 2, 3, 4}
    assert draws["cutout"].min(axis=0).tolist() == [-2, -2]
    assert draws["cutout"].max(axis=0).tolist() == [5, 3]
    magnification = 1 / np.sqrt(np.linalg.det(draws["affine"].astype(np.float64)))
    angle = np.arctan2(draws["affine"][:, 0, 1], draws["affine"][:, 0, 0])
    assert 1 / 1.25 - 1e-6 <= magnification.min() < 0.81
    assert 1.24 < magnification.max() <= 1.25 + 1e-6
    assert -0.3 - 1e-6 <= angle.min() < -0.299
    assert 0.299 < angle.max() <= 0.3 + 1e-6


def test_two_epochs_in_a_row_show_both_sides():
    flips = [draw_augmentation(Augmentation(flip=True), 0, epoch, 50, 4, 4)["flip"] for epoch in range(3)]
    np.testing.assert_array_equal(flips[0], ~flips[1])
    np.testing.assert_array_equal(flips[0], flips[2])
    assert 10 < flips[0].sum() < 40


def test_dropout_keeps_its_share():
    mask = sampling.dropout_mask(0, 4, 100, 200, rate=0.3)
    assert abs(mask.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / mask.size)


MEAN, STD = np.array([100.0, 50.0, 20.0], np.float32), np.array([60.0, 40.0, 10.0], np.float32)


def apply(images: np.ndarray, draws: dict[str, np.ndarray], augmentation: Augmentation) -> np.ndarray:
    result = jax.jit(augment, static_argnums=4)(images, draws, jnp.asarray(MEAN), jnp.asarray(1 / STD), augmentation)
    return np.asarray(result) * STD + MEAN


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), np.uint8)


def test_without_augmentation_images_are_normalised(images):
    result = augment(images, {}, jnp.asarray(MEAN), jnp.asarray(1 / STD), Augmentation())
    np.testing.assert_allclose(result, (images - MEAN.astype(np.float64)) / STD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [2, 15])  # by 15, more than the image is wide, it is reflected more than once
def test_shift_cuts_a_window_out_of_the_reflected_image(images, shift):
    augmentation = Augmentation(shift=shift)
    draws = draw_augmentation(augmentation, 0, 0, len(images), 9, 7)
    result = apply(images, draws, augmentation)
    for image, (row, column), moved in zip(images, draws["shift"], result, strict=True):
        padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
        np.testing.assert_allclose(moved, padded[row : row + 9, column : column + 7], atol=1e-4)


def test_flip_turns_left_to_right(images):
    flip = np.array([True, False, True, True, False, False])
    result = apply(images, {"flip": flip}, Augmentation(flip=True))
    expected = [np.fliplr(image) if turned else image for image, turned in zip(images, flip, strict=True)]
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_cutout_is_clipped_at_the_border(images):
    corner = np.array([[-1, -1], [0, 0], [7, 5], [8, -2], [3, 2], [-3, 4]])
    result = apply(images, {"cutout": corner}, Augmentation(cutout=3))
    expected = images.astype(np.float64)
    for image, (row, column) in zip(expected, corner, strict=True):
        image[max(row, 0) : max(row + 3, 0), max(column, 0) : max(column + 3, 0)] = MEAN
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_affine_agrees_with_scipy(images):
    augmentation = Augmentation(rotate=0.5, zoom=0.3)
    draws = draw_augmentation(augmentation, 0, 0, len(images), 9, 7)
    result = apply(images, draws, augmentation)
    centre = np.array([4.0, 3.0])
    # scipy blends with the outside only by mode "grid-constant"
    for image, matrix, moved in zip(images, draws["affine"].astype(np.float64), result, strict=True):
        for channel in range(3):
            expected = scipy.ndimage.affine_transform(
                image[..., channel].astype(np.float64),
                matrix,
                centre - matrix @ centre,
                order=1,
                mode="grid-constant",
            )
            np.testing.assert_allclose(moved[..., channel], expected, atol=2e-2)


def test_a_quarter_turn_moves_the_top_to_the_left():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 0, 1:4] = 200
    turn = np.array([[[0, 1], [-1, 0]]], np.float32)  # rotate = pi / 2, magnification 1
    result = jax.jit(augment, static_argnums=4)(image, {"affine": turn}, 0.0, jnp.ones(1), Augmentation(rotate=2.0))
    np.testing.assert_allclose(result[0, 1:4, 4, 0], 0, atol=1e-3)
    np.testing.assert_allclose(result[0, 1:4, 0, 0], 200, atol=1e-3)


def test_balanced_batches_follow_the_recipe():
    """P x K, an example at a time, from the words of docs/recipe.md."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2, 3], [9, 2, 5, 4]))
    found = balanced_order(seed=3, epoch=2, labels=labels, num_classes=4, batch_size=6, classes_per_batch=2)
    order = np.argsort(generator(3, "order", 2).random(20), kind="stable")
    queues = {c: [i for i in order if labels[i] == c] for c in range(4)}
    taken = dict.fromkeys(range(4), 0)
    rows = generator(3, "classes", 2).random((3, 4))
    for batch, row in zip(found, rows, strict=True):
        expected = []
        for c in np.argsort(row, kind="stable")[:2]:
            for _ in range(3):
                expected.append(queues[c][taken[c] % len(queues[c])])
                taken[c] += 1
        assert batch.tolist() == expected


def test_balanced_batches_that_cannot_be_made():
    with pytest.raises(ValueError, match="class 1 has no example"):
        balanced_order(0, 0, np.array([0, 0, 2, 2]), num_classes=3, batch_size=4, classes_per_batch=2)
    with pytest.raises(ValueError, match="class 2 has no example"):
        balanced_order(0, 0, np.array([0, 0, 1, 1]), num_classes=3, batch_size=4, classes_per_batch=2)
    with pytest.raises(ValueError, match="4 of 3 classes cannot make a batch of 4"):
        balanced_order(0, 0, np.array([0, 1, 2, 2]), num_classes=3, batch_size=4, classes_per_batch=4)
    with pytest.raises(ValueError, match="2 of 3 classes cannot make a batch of 3"):
        balanced_order(0, 0, np.array([0, 1, 2, 2]), num_classes=3, batch_size=3, classes_per_batch=2)


def test_normal_draws_are_normal_and_their_own():
    draws = np.concatenate([normal_draws(0, step, 1000) for step in range(20)])
    assert scipy.stats.kstest(draws, "norm").pvalue > 0.01
    assert draws.dtype == np.float32
    assert len(np.unique(draws)) > 19_900
