"""`faces`: photos that are made of real or of drawn faces, in, names out."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jax_arcface.__main__ import main
from jax_arcface.faces.alignment import TEMPLATE, align
from jax_arcface.faces.conftest import FACES, needs_faces, needs_weights
from jax_arcface.faces.gallery_test import model

PHOTO = load_sample_image("china.jpg")
PLACES = np.stack([TEMPLATE + np.array(corner) for corner in ([30, 20], [300, 30], [480, 250])])
PEOPLE = {"Ann": 0, "Bo": 1, "Cy": 2}


def line(name, points):
    return f"{name} {' '.join(f'{v:.3f}' for v in points.ravel())}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three people, parts of a photo whose landmarks are given, and a network of means in place of a trained one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax_arcface.cli.faces.load_model", lambda path: model())
    lines = [line("all.png", points) for points in PLACES]
    for name, number in PEOPLE.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        left, top = (PLACES[number].min(0) - 55).astype(int)
        Image.fromarray(PHOTO[top : top + 170, left : left + 170]).save(tmp_path / "people" / name / "1.png")
        lines.append(line(f"{name}/1.png", PLACES[number] - [left, top]))
    Image.fromarray(PHOTO).save(tmp_path / "all.png")
    (tmp_path / "points.txt").write_text("".join(lines))
    return tmp_path


def run(words, capsys):
    status = main(["faces", *words.split()])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_align_writes_crops_and_landmarks(folder, capsys):
    assert run("align people out --landmarks points.txt", capsys)[0] == 0
    for name, number in PEOPLE.items():
        crop = np.asarray(Image.open(folder / "out" / name / "1.png")).astype(int)
        expected = np.asarray(align(PHOTO[None], PLACES[number : number + 1]))[0]
        assert np.abs(crop - expected).max() <= 1
    # what it writes, it reads
    assert run("align people again --landmarks out/landmarks.txt", capsys)[0] == 0
    first, second = (np.asarray(Image.open(folder / place / "Bo" / "1.png")).astype(int) for place in ("out", "again"))
    assert np.abs(first - second).max() <= 3
    assert run("align all.png several --landmarks points.txt --choose all --size 128", capsys)[0] == 0
    assert {Image.open(file).size for file in (folder / "several").glob("all-[123].png")} == {(128, 128)}


def test_a_gallery_is_built_added_to_and_names_people(folder, capsys):
    (folder / "people" / "Cy").rename(folder / "later")
    flags = "--model m --landmarks points.txt"
    status, out, _ = run(f"embed people {flags}", capsys)
    assert (status, "2 faces of 2 people" in out) == (0, True)
    identify = f"identify people all.png {flags} --threshold 0.5 --out deep/named.png"
    rows = run(identify, capsys)[1].splitlines()
    assert [row.split()[1] for row in rows[:3]] == ["Ann", "Bo", "unknown"]
    (folder / "later").rename(folder / "people" / "Cy")
    rows = run(identify, capsys)[1].splitlines()
    assert [row.split()[1] for row in rows[:3]] == ["Ann", "Bo", "Cy"]
    named = np.asarray(Image.open(folder / "deep" / "named.png"))
    assert named.shape == PHOTO.shape
    assert (named != PHOTO).any(axis=2).sum() > 1000
    (folder / "people" / "Ann" / "1.png").unlink()
    assert "2 faces of 2 people" in run(f"embed people {flags}", capsys)[1]
    status, out, _ = run(f"identify people/faces.npz all.png {flags} --threshold 0.5", capsys)
    assert [row.split()[1] for row in out.splitlines()[:3]] == ["unknown", "Bo", "Cy"]
    assert run(f"identify people/faces.npz all.png {flags} --threshold 0.5 --flip", capsys)[0] == 2


def test_verify_prints_the_angle_and_judges_by_the_threshold(folder, capsys):
    pair = "verify people/Ann/1.png people/Bo/1.png --model m --landmarks points.txt"
    crops = np.asarray(align(PHOTO[None], PLACES[:2], np.zeros(2, int))).astype(float)
    a, b = crops.reshape(2, 2, 56, 2, 56, 3).mean((2, 4)).reshape(2, -1) - 100
    angle = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    for threshold, expected in ((angle - 1, "different"), (angle + 1, "same")):
        status, out, _ = run(f"{pair} --threshold {threshold:.3f}", capsys)
        assert (status, out.split()[0]) == (0, expected)
        assert float(out.split()[2]) == pytest.approx(angle, abs=0.3)
        found = {"threshold": float(np.cos(np.radians(threshold))), "far": 0.001, "tar": 0.9, "negatives": 5000}
        (folder / "threshold.json").write_text(json.dumps(found))
        status, out, _ = run(f"{pair} --calibration threshold.json", capsys)
        assert (status, out.split()[0]) == (0, expected)
        assert "0.001" in out
        assert "5,000" in out


@pytest.mark.parametrize(
    "words",
    [
        "",
        "fly",
        "verify all.png people/Bo/1.png --threshold 40 --model m",  # three faces
        "verify people/Ann/1.png people/Bo/1.png --model m",  # no threshold
        "verify people/Ann/1.png people/Bo/1.png --threshold 40",  # no model
        "verify people/Ann/1.png people/Bo/1.png --threshold 200 --model m",
        "verify people/Ann/1.png people/Bo/1.png --threshold 40 --model m --choose all",
        "verify people/Ann/1.png people/Bo/1.png --threshold 40 --model m --calibration points.txt",
        "verify people/Ann/1.png people/Bo/1.png --model m --calibration points.txt",
        "verify people/Ann/1.png points.txt --threshold 40 --model m",
        "verify people/Ann/1.png none.png --threshold 40 --model m",
        "identify people/Ann/1.png all.png --threshold 40 --model m",
        "identify people all.png --threshold 40 --model m --min-face 500",
        "identify people all.png --threshold 40 --model m --choose first",
        "embed people --model m --detector cascade",
        "embed all.png --model m",
        "align people out --size 100",
        "align people out --min-face 500",
        "align people out --min-face 0",
        "align people out --min-face nan",
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, folder, capsys):
    status, out, err = run(f"{words} --landmarks points.txt" if " " in words else words, capsys)
    if not words:
        assert (status, err) == (0, "")
        return
    assert (status, out) == (2, "")
    assert [row.startswith("left out: ") for row in err.splitlines()].count(False) == 1


def test_photos_that_cannot_be_taken_are_listed(folder, capsys):
    (folder / "people" / "Bo" / "2.png").write_bytes(b"no photo")
    Image.new("1", (10_400, 10_000)).save(folder / "people" / "Bo" / "3.png")
    status, out, err = run("embed people --model m --landmarks points.txt", capsys)
    assert (status, err.count("left out")) == (0, 2)
    assert "3 faces" in out


@needs_weights
@needs_faces
@pytest.mark.slow
def test_real_photos_and_a_trained_network(tmp_path, monkeypatch, capsys):
    """Two photos of each of two people, beside each other and with a stranger, found, aligned and named."""
    monkeypatch.chdir(tmp_path)
    photos = {name: FACES / "lfw" / "images" / name for name in ("Abel_Pacheco", "Angela_Bassett", "Antony_Leung")}
    both = {name: sorted(folder.iterdir()) for name, folder in photos.items()}
    scene = Image.new("RGB", (750, 250))
    for number, name in enumerate(both):
        scene.paste(Image.open(both[name][-1]), (250 * number, 0))
        if name != "Antony_Leung":
            (tmp_path / "people" / name).mkdir(parents=True)
            Image.open(both[name][0]).save(tmp_path / "people" / name / "known.png")
    scene.save("scene.jpg", quality=95)
    flags = f"--model {FACES}/mobilefacenet/mobilefacenet.pt --threshold 70"
    status, out, _ = run(f"identify people scene.jpg {flags}", capsys)
    assert status == 0
    assert [row.split()[1] for row in out.splitlines()[:3]] == ["Abel_Pacheco", "Angela_Bassett", "unknown"]
    first, other = (f"people/{name}/known.png" for name in ("Abel_Pacheco", "Angela_Bassett"))
    assert run(f"verify {first} {both['Abel_Pacheco'][-1]} {flags}", capsys)[1].startswith("same")
    assert run(f"verify {first} {other} {flags}", capsys)[1].startswith("different")
    assert run(f"verify {first} scene.jpg {flags}", capsys)[0] == 2
