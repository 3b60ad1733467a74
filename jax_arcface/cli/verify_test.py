"""`verify`, `identify` and the threshold that `evaluate` calibrates, against numpy."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jax_arcface.__main__ import main


@pytest.fixture
def calibrated(run_copy):
    """A run with a threshold for a false accept rate of 1 %."""
    assert main(["evaluate", str(run_copy), "--protocol", "none", "--calibrate", "1e-2"]) == 0
    return run_copy


@pytest.fixture
def gallery(tmp_path):
    """Twenty digits as `gallery/CLASS/NUMBER.png`."""
    held = load_digits()
    for number in range(20):
        file = tmp_path / "gallery" / str(held.target[number]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * held.images[number].astype(int) // 16).astype(np.uint8)).save(file)
    return tmp_path / "gallery"


def directions(run, path):
    """Unit embeddings of the images in a folder, by their names, as `embed` writes them."""
    assert main(["embed", str(run), str(path), "--out", "images.npz"]) == 0
    arrays = np.load("images.npz")
    x = arrays["embeddings"].astype(np.float64)
    return dict(zip(arrays["files"].tolist(), x / np.linalg.norm(x, axis=1, keepdims=True), strict=True))


def test_the_threshold_is_the_lowest_with_the_wished_rate(calibrated):
    found = json.loads((calibrated / "threshold.json").read_text())
    arrays = np.load(calibrated / "embeddings.npz")
    x, labels = arrays["embeddings"].astype(np.float64), arrays["labels"]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    upper = np.triu_indices(len(x), 1)
    scores, same = (x @ x.T)[upper], (labels[:, None] == labels)[upper]
    assert found["negatives"] == (~same).sum()
    near = 2.0**-19  # scores are rounded, and the network computes in float32
    assert found["far"] <= 0.01 < np.mean(scores[~same] >= found["threshold"] - 1e-3)
    for name, kind in (("far", ~same), ("tar", same)):
        low, high = (np.mean(scores[kind] >= found["threshold"] + d) for d in (near, -near))
        assert low <= found[name] <= high


def test_same_or_different(calibrated, gallery, capsys):
    threshold = np.degrees(np.arccos(json.loads((calibrated / "threshold.json").read_text())["threshold"]))
    units = directions(calibrated, gallery)
    first = "0/0.png"
    for other in ("0/0.png", "0/10.png", "1/1.png", "8/8.png"):
        capsys.readouterr()
        assert main(["verify", str(calibrated), str(gallery / first), str(gallery / other)]) == 0
        answer, *numbers = capsys.readouterr().out.splitlines()
        angle = np.degrees(np.arccos(np.clip(units[first] @ units[other], -1, 1)))
        assert answer == ("same" if angle <= threshold else "different")
        assert [float(re.search("[0-9.]+", line)[0]) for line in numbers] == pytest.approx([angle, threshold], abs=0.06)


def test_a_gallery_is_ranked_and_may_hold_nobody(calibrated, gallery, capsys):
    probe = (gallery / "3/13.png").rename(gallery.parent / "probe.png")
    units = directions(calibrated, gallery.parent / "gallery")
    (asked,) = directions(calibrated, probe).values()
    best = {}
    for file, one in units.items():
        best[file[0]] = max(best.get(file[0], -1), one @ asked)
    expected = sorted(best, key=lambda name: -best[name])[:5]
    path, shown = calibrated / "threshold.json", []
    held = json.loads(path.read_text())
    for threshold in (-1, 1):  # accepts all, and none
        path.write_text(json.dumps(held | {"threshold": threshold}))
        capsys.readouterr()
        assert main(["identify", str(calibrated), str(gallery), str(probe)]) == 0
        shown.append(capsys.readouterr().out.splitlines())
    path.unlink()
    assert main(["identify", str(calibrated), str(gallery), str(probe)]) == 0
    shown.append(capsys.readouterr().out.splitlines())
    assert [line.split()[1] for line in shown[0][:-1]] == expected
    assert shown[1][:-1] == ["nobody", *shown[0][:-1]]
    assert shown[2] == shown[0][:-1]


def test_what_cannot_be_compared(calibrated, gallery, refused):
    one = gallery / "0/0.png"
    assert "folder" in refused("verify", calibrated, gallery, one)
    assert "folder" in refused("identify", calibrated, gallery, gallery)
    assert "nowhere" in refused("verify", calibrated, one, "nowhere.png")
    assert "nowhere" in refused("identify", calibrated, "nowhere", one)
    assert "0.png" in refused("identify", calibrated, one, one)
    Path("empty").mkdir()
    assert "no images" in refused("identify", calibrated, "empty", one)
    Path("text.png").write_text("no image")
    assert "text.png" in refused("verify", calibrated, one, "text.png")
    refused("verify", gallery, one, one)  # no run


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"threshold": "much", "far": 0, "tar": 1, "negatives": 9}',
        '{"threshold": 2, "far": 0, "tar": 1, "negatives": 9}',
        '{"threshold": true, "far": 0, "tar": 1, "negatives": 9}',
        '{"threshold": 0.5, "far": 0, "tar": 1}',
    ],
)
def test_a_damaged_threshold(content, run_copy, gallery, refused):
    (run_copy / "threshold.json").write_text(content)
    one = gallery / "0/0.png"
    assert "threshold.json" in refused("verify", run_copy, one, one)
    assert "threshold.json" in refused("identify", run_copy, gallery, one)


def test_a_threshold_that_cannot_be_had(run_copy, gallery, refused):
    one = gallery / "0/0.png"
    assert "--calibrate" in refused("verify", run_copy, one, one)
    for far in ("1e-9", "0", "1", "-0.1", "nan"):
        refused("evaluate", run_copy, "--calibrate", far)
        refused("evaluate", run_copy, "--split", "train", "--calibrate", far)
    refused("evaluate", run_copy / "embeddings.npz", "--calibrate", "0.1")
    assert not list(run_copy.glob("*threshold*")) + list(run_copy.glob("*evaluation*"))
