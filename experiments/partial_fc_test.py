import json

import numpy as np
import torch

from experiments.__main__ import main
from experiments.partial_fc import numbers, sampled_classes
from torch_reference.data import Split


def test_the_batchs_classes_and_others_drawn_alike():
    torch.manual_seed(0)
    labels = torch.tensor([3, 17, 3])
    count = np.zeros(20)
    for _ in range(2000):
        chosen, place = sampled_classes(labels, classes=20, share=0.5)
        assert chosen[place].tolist() == labels.tolist()
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == 10
        count[chosen] += 1
    assert (count[[3, 17]] == 2000).all()
    others = np.delete(count, [3, 17])
    assert abs(others - 2000 * 8 / 18).max() < 5 * np.sqrt(2000 * (8 / 18) * (10 / 18))


def test_where_the_batch_has_more_classes_than_the_share_all_of_them_are_taken():
    chosen, _ = sampled_classes(torch.arange(7), classes=20, share=0.1)
    assert chosen.tolist() == list(range(7))


def test_numbers_are_composed_of_images_of_their_digits():
    """An image's pixels name its digit and which of its images it is."""
    labels = np.tile(np.arange(10), 3)
    images = (10 * np.arange(30) + labels).astype(np.uint8).reshape(30, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    made, of = numbers(Split(images, labels), each=4, digits=3, seed=0)
    assert made.shape == (4000, 2, 6, 1)
    digit = {int(image[0, 0, 0]): label for image, label in zip(images, labels, strict=True)}
    found = np.vectorize(digit.get)(made[:, 0, ::2, 0]) @ [100, 10, 1]
    np.testing.assert_array_equal(found, of)
    np.testing.assert_array_equal(np.bincount(of), np.full(1000, 4))
    assert len(np.unique(made[of == 0], axis=0)) > 1


def test_a_share_of_the_classes_learns_what_all_of_them_do(tmp_path, capsys):
    path = tmp_path / "found.json"
    words = "partial_fc --digits 2 --shares 1 0.5 --seeds 1 --epochs 3 --each 40 --json"
    assert main([*words.split(), str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["share"] for row in rows] == [1.0, 0.5]
    assert all(row["test_accuracy"][0] > 0.5 for row in rows)
    assert f"share 0.5   {100 * rows[1]['test_accuracy'][0]:.2f} %" in capsys.readouterr().out


def test_a_share_out_of_range_is_one_line_and_status_2(capsys):
    assert main(["partial_fc", "--shares", "1", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "experiments: --shares has 2; a share must be above 0 and at most 1; see partial_fc --help\n"
