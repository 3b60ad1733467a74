import dataclasses
import io
import json
import math

import mpmath
import numpy as np
import pytest

from experiments import modules, runs
from experiments._browser import PATH, Browser
from experiments.figures import (
    _images,
    _style,
    angle_distributions,
    angle_statistics,
    center_loss,
    confusion,
    convergence,
    decision_margin,
    embeddings,
    geometry,
    loss_comparison,
    nearest,
    noise,
    numerics,
    pipeline,
    sphere_3d,
    target_logit,
    toy_2d,
    training_2d,
    worked_example,
)
from experiments.figures._framework import Embedded, Study, find, key, make

IMAGE = _images.encoded(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
NAMES = ["a", "b", "c"]
LOSSES = ("softmax", "norm_softmax", "sphereface", "cosface", "arcface", "triplet")
SPHERE = {
    "dataset": "digits",
    "class_names": NAMES,
    "labels": [0, 1, 2],
    "columns": 40,
    "size": 8,
    "sheet": _images.encoded(sphere_3d.sheet(np.full((3, 8, 8, 1), 200, np.uint8))),
    "losses": {
        loss: {"accuracy": 0.9, "points": np.eye(3).tolist(), "prototypes": np.eye(3).tolist(), "degrees": [0.0] * 3}
        for loss in sphere_3d.LOSSES
    },
}
# Small numbers of the figures that need runs, in the form that `numbers` gives them.
SMALL = {
    "angle_distributions": {
        "dataset": "digits",
        "bins": list(range(0, 181, 3)),
        "names": NAMES,
        "images": 4,
        "losses": {
            loss: {
                "eer": 0.1,
                "eer_degrees": 40.0,
                "pairs": {"positive": 2, "negative": 4},
                "mean": {"positive": 20.0, "negative": 80.0},
                "share": {"positive": [0.5] * 60, "negative": [0.1] * 60},
            }
            for loss in angle_distributions.LOSSES
        },
    },
    "angle_statistics": {
        "dataset": "digits",
        "losses": {
            loss: {
                of: dict.fromkeys(angle_statistics.COLUMNS, None if loss == "triplet" else 30.0)
                for of in ("ours", "paper")
            }
            | ({"paper": dict.fromkeys(angle_statistics.COLUMNS, 10.0)} if loss == "triplet" else {})
            for loss in angle_statistics.TITLES
        },
    },
    "confusion": {
        "dataset": "digits",
        "class_names": NAMES,
        "matrices": dict.fromkeys(confusion.LOSSES, np.eye(3, dtype=int).tolist()),
    },
    "convergence": {
        "dataset": "digits",
        "losses": {
            loss: {
                p: {"epoch": [1, 2], "train_loss": [2.0, 1.0], "test_accuracy": [0.5, 0.9]}
                for p in convergence.PROGRAMS
            }
            | {"seen": {"epoch": [0.0, 1.0], "angle": [90.0, 40.0], "gradient": [None, 2.0]}}
            for loss in convergence.LOSSES
        },
    },
    "embeddings": {
        "dataset": "digits",
        "class_names": NAMES,
        "labels": [0, 1, 2],
        "losses": {
            loss: {"variance": 0.5, "pca": np.eye(3)[:, :2].tolist(), "tsne": np.eye(3)[:, :2].tolist()}
            for loss in embeddings.LOSSES
        },
    },
    "loss_comparison": {
        "dataset": "digits",
        "seeds": [0, 1],
        "losses": {
            loss: {name: [90.0, 91.0] for name in loss_comparison.MEASURES}
            | {
                "differences": {}
                if loss == "norm_softmax"
                else {name: {"mean": 1.0, "low": 0.5, "high": 1.5} for name in loss_comparison.MEASURES},
                "paper": [99.0, 95.0, 95.0],
            }
            for loss in LOSSES
        },
    },
    "nearest": {
        "dataset": "digits",
        "class_names": NAMES,
        "test_images": 3,
        "wrong": 1,
        "rows": [
            {
                "query": {"index": 0, "label": 0, "image": IMAGE},
                "neighbours": [{"index": 1, "label": 1, "image": IMAGE, "degrees": 9.0}],
            }
        ],
        "mistakes": [{"index": 1, "label": 1, "prediction": 2, "image": IMAGE}],
    },
    "pipeline": {
        "dataset": "digits",
        "index": 0,
        "image": IMAGE,
        "label": 0,
        "class_names": NAMES,
        "embedding": [3.0, 4.0],
    }
    | pipeline.computed(np.array([0.8, 0.1, -0.5]), 0, 0.5, 16.0, 5.0),
    "target_logit": {
        "dataset": "digits",
        "degrees": [0.0, 180.0],
        "psi": {name: [1.0, -1.0] for name in target_logit.CURVES},
        "bins": [0, 3, 6],
        "angles": {name: {"share": [0.5, 0.5], "median": 3.0} for name, _ in target_logit.MOMENTS},
    },
    "training_2d": {
        "dataset": "digits",
        "class_names": NAMES,
        "epochs": [number / 48 for number in range(49)],
        "losses": {
            loss: {
                "accuracy": 0.9,
                "extent": 1.0,
                "labels": [0, 2],
                "points": training_2d.packed(np.full((49, 2, 2), 0.5)),
                "prototypes": [[0.0, 90.0, 180.0]] * 49,
            }
            for loss in training_2d.LOSSES
        },
    },
    "sphere_3d": SPHERE,
    "center_loss": {
        "dataset": "digits",
        "class_names": NAMES,
        "weights": {
            weight: {
                "accuracy": 0.9,
                "within": 1.0,
                "between": 4.0,
                "points": [[0.0, 1.0], [2.0, 3.0]],
                "labels": [0, 2],
            }
            for weight in center_loss.WEIGHTS
        },
    },
    "margin_and_scale": {
        "dataset": "digits",
        "seeds": [0],
        "margins": [0.0, 0.5],
        "scales": [4.0, 16.0, 64.0],
        "bound": 5.5,
        "accuracy": [[[90.0], [91.0], [92.0]], [[93.0], [94.0], [95.0]]],
        "auc": [[[80.0], [81.0], [82.0]], [[83.0], [84.0], [85.0]]],
    },
    "noise": {
        "dataset": "digits",
        "images": 100,
        "rates": list(noise.RATES),
        "losses": {loss: {"accuracy": [99.0, 98.0, 90.0], "recall": [None, 90.0, 80.0]} for loss in noise.LOSSES},
        "farthest": [{"image": IMAGE, "label": "a", "true": "b", "degrees": 99.0}] * noise.SHOWN,
    },
    "toy_2d": {
        "dataset": "digits",
        "bins": toy_2d.BINS.tolist(),
        "class_names": NAMES,
        "losses": {
            loss: {
                "accuracy": 0.9,
                "points": [[1.0, 0.0]],
                "labels": [0],
                "prototypes": [0.0, 90.0, 180.0],
                "counts": np.eye(3, 120, dtype=int).tolist(),
            }
            for loss in toy_2d.LOSSES
        },
    },
}


@pytest.mark.parametrize("name", modules("experiments.figures"))
def test_a_figure_is_drawn_and_described_from_its_numbers(name):
    figure = find(name)
    numbers = json.loads(json.dumps(SMALL.get(name) or figure.numbers(Study(quick=True)), allow_nan=False))
    with _style.style():
        picture = figure.draw(numbers)
        picture.savefig(held := io.BytesIO(), format="png", dpi=30)
    assert len(held.getvalue()) > 1000
    assert len(figure.caption_of(numbers)) > 50
    assert len(figure.alt) > 50
    assert all(program in ("torch_reference", "jax_arcface") for program, _ in figure.runs(Study()))


def test_what_is_written_is_the_picture_twice_and_its_description(tmp_path):
    make("worked_example", Study(quick=True), tmp_path / "figures")
    held = json.loads((tmp_path / "figures/worked_example.json").read_text())
    assert held["command"] == "python -m experiments worked_example --quick"
    assert {"name", "title", "caption", "machine", "commit", "versions", "numbers"} <= set(held)
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        f"worked_example.{k}" for k in ("json", "png", "svg")
    ]


def test_what_is_made_stays_until_its_code_or_its_runs_change(tmp_path, monkeypatch):
    study = Study(quick=True, folder=tmp_path / "runs")
    make("worked_example", study, tmp_path)
    first = (tmp_path / "worked_example.svg").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(worked_example, "FIGURE", dataclasses.replace(worked_example.FIGURE, draw=None))
        make("worked_example", study, tmp_path)  # nothing is drawn
    (tmp_path / "worked_example.svg").unlink()
    make("worked_example", study, tmp_path)
    assert (tmp_path / "worked_example.svg").read_bytes() == first

    before = key("confusion", study)
    assert key("confusion", study) == before
    program, fields = find("confusion").runs(study)[0]
    run = study.folder / runs.name(program, fields)
    run.mkdir(parents=True)
    (run / "experiment.json").write_text('{"code": "other"}')
    assert key("confusion", study) != before


def test_the_worked_example_by_hand():
    before, after = worked_example.numbers(Study())["pairs"]
    assert before["distance"] == pytest.approx(math.sqrt(8))
    assert after["distance"] == pytest.approx(math.sqrt(5.5**2 + 4**2))
    turned = math.degrees(math.atan2(4, 7) - math.atan2(2, 5))
    assert before["degrees"] == pytest.approx(turned) == pytest.approx(after["degrees"])


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("norm_softmax", lambda t: t),
        ("sphereface", lambda t: t / 1.35),
        ("cosface", lambda t: np.arccos(np.cos(t) + 0.35)),
        ("arcface", lambda t: t - 0.5),
        ("combined", lambda t: np.arccos(np.cos(t) + 0.2) - 0.3),
    ],
)
def test_decision_boundaries_are_their_closed_forms(name, exact):
    other = np.array([60.0, 75.0, 90.0])
    found = decision_margin.boundary(other, decision_margin.MARGINS[name])
    np.testing.assert_allclose(found, np.degrees(exact(np.radians(other))), atol=1e-4)
    if name in ("cosface", "arcface", "combined"):
        assert np.isnan(decision_margin.boundary(np.array([5.0]), decision_margin.MARGINS[name]))[0]


def test_geometry_limits_lie_where_both_sides_are_equal():
    limits = {name: np.radians(pair) for name, pair in geometry.limits().items()}
    apart, (long, short) = np.radians(geometry.APART), geometry.LENGTHS
    one, _ = limits["softmax"]
    assert long * np.cos(one) == pytest.approx(short * np.cos(apart - one))
    assert geometry.FACTOR * limits["a_softmax"][0] == pytest.approx(apart - limits["a_softmax"][0])
    assert limits["arcface"][0] + geometry.ADDED == pytest.approx(apart - limits["arcface"][0])


def test_errors_of_the_margin_against_mpmath():
    angle, value, slope = numerics.truth(-0.9999, 0.5)
    with mpmath.workdps(30):
        theta = mpmath.acos(mpmath.mpf(-0.9999))
        assert angle == pytest.approx(float(mpmath.pi - theta))
        assert value == pytest.approx(float(-mpmath.cos(theta + 0.5) - 2))
    step = 1e-7
    around = [numerics.truth(-0.9999 + side * step, 0.5)[1] for side in (-1, 1)]
    assert slope == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-4)
    cosines = numerics.near("float32", "zero", 5)
    ours = numerics.errors("project", "float32", cosines, [numerics.truth(c, 0.5) for c in cosines])
    assert max(ours["derivative"]) < 1e-6
    assert (
        numerics.slopes_at("float32", 1.0)["arccos"] == -math.inf
        or numerics.slopes_at("float32", 1.0)["arccos"] == math.inf
    )


def test_the_pipelines_loss_is_the_cross_entropy_of_its_logits():
    found = pipeline.computed(np.array([0.6, 0.8, 0.0]), 0, 0.5, 4.0, 1.0)
    target = math.cos(math.acos(0.6) + 0.5)
    assert found["loss"] == pytest.approx(math.log(1 + math.exp(4 * (0.8 - target)) + math.exp(-4 * target)))
    assert found["loss_without_margin"] == pytest.approx(math.log(1 + math.exp(0.8) + math.exp(-2.4)))


def test_the_interval_of_paired_differences_is_students():
    found = loss_comparison.interval([1.0, 2.0, 3.0])
    assert found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom, 97.5 %
    assert loss_comparison.interval([1.0]) == {"mean": 1.0, "low": None, "high": None}


def test_the_table_of_losses_has_a_row_for_each_and_for_each_difference():
    losses = SMALL["loss_comparison"]["losses"]
    tables = [text.splitlines() for text in loss_comparison.tables(losses)]
    assert [len(rows) for rows in tables] == [2 + len(losses), 1 + len(losses)]
    assert all(len({row.count("|") for row in rows}) == 1 for rows in tables)
    assert [row.split(" | ")[1] for rows in tables for row in rows if row.startswith("| ArcFace")] == [
        "90.50 +- 0.71",
        "**+1.00 [+0.50, +1.50]**",
    ]


def test_predictions_by_prototype_and_by_bias():
    x, labels = np.array([[1.0, 0.9], [0.0, 1.0]]), np.array([0, 1])
    assert Embedded(x, labels, ("a", "b"), np.diag([1.0, 5.0])).predictions.tolist() == [0, 1]
    assert Embedded(x, labels, ("a", "b"), np.eye(2), np.array([0.0, 0.5])).predictions.tolist() == [1, 1]


def test_neighbours_leave_out_the_query_even_where_it_is_there_twice():
    order, cosines = nearest.neighbours(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1, 2)
    assert order.tolist() == [0, 2]
    assert cosines.tolist() == [1.0, 0.0]


def test_principal_components_are_scikit_learns():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(20, 5))
    points, share = embeddings.principal(x)
    theirs = PCA(2).fit(x)
    np.testing.assert_allclose(np.abs(points), np.abs(theirs.transform(x)))
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum())


def test_the_curve_goes_on_falling_past_pi():
    psi = target_logit.curve(np.array([160.0, 180.0]), (1.0, 0.5, 0.0))
    np.testing.assert_allclose(psi, -np.cos(np.radians([160.0, 180.0]) + 0.5) - 2)


def test_the_animation_has_all_moments():
    from PIL import Image

    files = training_2d.animated(SMALL["training_2d"] | {"epochs": [0.0, 0.5, 1.0]})
    for kind, content in files.items():
        image = Image.open(io.BytesIO(content))
        assert image.format.lower() == kind
        assert image.n_frames in (2, 3)  # equal ones may be one


@pytest.mark.slow
@pytest.mark.skipif(PATH is None, reason="there is no Chromium")
def test_the_sphere_turns_when_it_is_dragged_and_tells_what_a_dot_is(tmp_path):
    (tmp_path / "sphere.html").write_bytes(sphere_3d.page(SPHERE)["html"])
    with Browser(tmp_path / "profile", 600, 640) as browser:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        browser.open(tmp_path / "sphere.html")
        first = browser.screenshot()
        assert browser.screenshot() == first  # it does not turn by itself for who prefers that
        x, y = browser.evaluate(
            "(() => { const box = canvas.getBoundingClientRect(), r = 0.42 * Math.min(box.width, box.height);"
            "const p = seen.find(p => p[2] > 0);"
            "return [box.left + box.width / 2 + p[0] * r, box.top + box.height / 2 - p[1] * r]; })()"
        )
        browser.mouse("mouseMoved", x, y)
        assert browser.evaluate("told.textContent.includes('0.0°') && !told.hidden")
        browser.drag((300, 300), (420, 340))
        browser.mouse("mouseMoved", 5, 5)
        assert browser.screenshot() != first
        axes = np.array(browser.evaluate("axes"))
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
        assert browser.problems == []
        assert [address.partition(":")[0] for address in browser.requests if "sphere.html" not in address] == [
            "data"
        ] * (len(browser.requests) - 1)


def test_the_page_opens_as_the_picture_shows_it():
    points = np.random.default_rng(0).normal(size=(5, 3))
    seen = sphere_3d.turned(points, 90, 0)
    np.testing.assert_allclose(seen, np.stack([points[:, 2], points[:, 1], -points[:, 0]], axis=1), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(sphere_3d.turned(points, 25, 20), axis=1), np.linalg.norm(points, axis=1))
