"""`evaluate` against numpy."""

import json

import numpy as np
import pytest

from jax_arcface.__main__ import main
from jax_arcface.cli import runs
from jax_arcface.training.config import TrainConfig


def cosines(arrays):
    x, w = (arrays[name].astype(np.float64) for name in ("embeddings", "prototypes"))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def test_what_numpy_finds_in_the_embeddings(run_copy, capsys):
    assert main(["evaluate", str(run_copy)]) == 0
    found = json.loads((run_copy / "evaluation.json").read_text())
    arrays = np.load(run_copy / "embeddings.npz")
    assert (found["dataset"], found["split"], found["examples"]) == ("digits", "test", 359)
    cosine, own = cosines(arrays), (np.arange(359), arrays["labels"])
    assert found["accuracy"] == np.mean(cosine.argmax(axis=1) == arrays["labels"])
    # ArcFace, equation 3, s = 16, m = 0.5, with the falling branch -cos(theta + m) - 2 past pi
    angle = np.arccos(np.clip(cosine[own], -1, 1)) + 0.5
    logits = 16 * cosine
    logits[own] = 16 * np.where(angle <= np.pi, np.cos(angle), -np.cos(angle) - 2)
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[own])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["loss"] == json.loads((run_copy / "metrics.jsonl").read_text().splitlines()[-1])["test_loss"]
    said = capsys.readouterr()
    assert f"{found['accuracy']:.2%}" in said.out
    assert said.err == ""


def test_each_result_has_its_own_file(run_copy, tmp_path):
    for words in ([], ["--split", "train"], ["--out", str(tmp_path / "there")]):
        assert main(["evaluate", str(run_copy), *words]) == 0
    assert main(["evaluate", str(run_copy / "embeddings.npz")]) == 0
    test, train, npz = (
        json.loads((run_copy / name).read_text())
        for name in ("evaluation.json", "evaluation-train.json", "embeddings.evaluation.json")
    )
    assert (test["split"], train["split"], train["examples"]) == ("test", "train", 1438)
    assert (npz["examples"], npz["accuracy"], "loss" in npz) == (359, test["accuracy"], False)
    assert npz["retrieval"]["map_at_r"] == pytest.approx(test["retrieval"]["map_at_r"], abs=1e-3)  # of other blocks
    assert json.loads((tmp_path / "there" / "evaluation.json").read_text()) == test


def test_an_unfinished_run_is_called_so(run_copy, capsys):
    runs.write_config(run_copy, TrainConfig(**json.loads((run_copy / "config.json").read_text()) | {"epochs": 5}))
    assert main(["evaluate", str(run_copy)]) == 0
    assert "3 of 5 epochs" in capsys.readouterr().err


def test_a_folder_of_runs_is_called_so(run_copy, refused):
    assert "folder of 1 run" in refused("evaluate", run_copy.parent)


@pytest.mark.parametrize("harm", ["missing", "cut off", "of another model"])
def test_weights_that_do_not_fit(harm, run_copy, refused):
    weights = run_copy / "model.safetensors"
    if harm == "missing":
        weights.unlink()
    elif harm == "cut off":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        config = json.loads((run_copy / "config.json").read_text())
        (run_copy / "config.json").write_text(json.dumps(config | {"embedding_dim": 8}))
    refused("evaluate", run_copy)


def test_other_mistakes(run_copy, refused, tmp_path):
    refused("evaluate", run_copy, "--split", "validation")
    refused("evaluate", "missing")
    refused("evaluate", "missing.npz")
    refused("evaluate", run_copy / "embeddings.npz", "--split", "train")
    (tmp_path / "note").touch()
    refused("evaluate", run_copy, "--out", "note/below")
    described = json.loads((run_copy / "dataset.json").read_text())
    described["class_names"][0] = "zero"
    (run_copy / "dataset.json").write_text(json.dumps(described))
    refused("evaluate", run_copy)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": np.zeros(4, int)},
        {"labels": np.array([0, 1, 2])},
        {"labels": np.array([0.0, 1.0, 1.0])},
        {"prototypes": np.ones((2, 5))},
        {"embeddings": np.ones((0, 4)), "labels": np.zeros(0, int)},
        {"embeddings": np.full((3, 4), np.nan)},
        {"prototypes": np.full((2, 4), "a")},
        {"bias": np.zeros(3)},
    ],
)
def test_arrays_that_do_not_fit(change, refused):
    arrays = {"embeddings": np.ones((3, 4)), "labels": np.array([0, 1, 1]), "prototypes": np.ones((2, 4))} | change
    np.savez("mine.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert "mine.npz" in refused("evaluate", "mine.npz")


def test_the_protocols_against_scikit_learn(run_copy, tmp_path):
    from sklearn.metrics import roc_auc_score

    arrays = np.load(run_copy / "embeddings.npz")
    np.savez(tmp_path / "mine.npz", embeddings=arrays["embeddings"].astype(np.float64), labels=arrays["labels"])
    assert main(["evaluate", str(tmp_path / "mine.npz")]) == 0
    found = json.loads((tmp_path / "mine.evaluation.json").read_text())
    x = arrays["embeddings"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    upper = np.triu_indices(len(x), 1)
    scores, same = (x @ x.T)[upper], (arrays["labels"][:, None] == arrays["labels"])[upper]
    assert found["verification"]["auc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-6)
    assert found["verification"]["tar_at_far"]["1e-06"] is None  # of 58,000 pairs
    threshold = found["verification"]["threshold_at_far"]["1e-02"]
    assert found["verification"]["tar_at_far"]["1e-02"] == np.mean(np.rint(scores[same] * 2**20) >= threshold * 2**20)
    np.fill_diagonal(cosine := x @ x.T, -1)
    precise = np.mean(arrays["labels"][cosine.argmax(axis=1)] == arrays["labels"])
    assert found["retrieval"]["precision_at_1"] == precise
    assert "accuracy" not in found  # there are no prototypes


@pytest.mark.parametrize("harm", ["one class", "no pair", "nan", "zero"])
def test_embeddings_that_cannot_be_compared(harm, tmp_path, refused, capsys):
    x, labels = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 0, 1, 1, 2, 2])
    if harm == "one class":
        labels[:] = 1
    if harm == "no pair":
        labels = np.arange(6)
    if harm in ("nan", "zero"):
        x[4] = {"nan": np.nan, "zero": 0}[harm]
    np.savez(tmp_path / "mine.npz", embeddings=x, labels=labels)
    if harm != "nan":  # the file's reader refuses it before
        assert main(["evaluate", str(tmp_path / "mine.npz")]) == 0  # what is defined
        assert "health" in json.loads((tmp_path / "mine.evaluation.json").read_text())
        assert "verification is left out" in capsys.readouterr().err
        (tmp_path / "mine.evaluation.json").unlink()
    assert refused("evaluate", tmp_path / "mine.npz", "--protocol", "verification")
    assert not (tmp_path / "mine.evaluation.json").exists()


def test_an_unknown_protocol(run_copy, refused):
    assert "verification" in refused("evaluate", run_copy, "--protocol", "verfication")
