"""A learnt Mahalanobis distance ||x1 - x2||_A, the traditional baseline, on pixels or on the embeddings of a run.

    python -m experiments mahalanobis digits
    python -m experiments mahalanobis runs/mnist --examples 3000

Neighbourhood components analysis (Goldberger et al., NeurIPS 2004; scikit-learn's) learns L with A = L^T L from the
first training examples of each class. The nearest of these under ||.||_A classifies the test images, beside the nearest
in Euclidean distance. Prints both and, with `--json FILE`, writes them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments._arguments import Parser, UserError, check_at_least
from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.models.trained import load_model


def main(words: list[str]) -> None:
    """Measures and prints."""
    options = _parser().parse_args(words)
    check_at_least(1, examples=options.examples, dimensions=options.dimensions)
    check_at_least(0, seed=options.seed)
    what, train, test = _examples(options)
    started = time.perf_counter()
    result = compare(*train, *test, options.dimensions, options.seed)
    result |= {"examples": len(train[1]), "tested": len(test[1]), "seconds": time.perf_counter() - started}
    print(f"{what}: {len(train[1]):,} training and {len(test[1]):,} test examples of dimension {train[0].shape[1]}")
    for name in ("euclidean", "mahalanobis"):
        print(f"nearest neighbour, {name:<12} {100 * result[name]:.2f} %")
    if options.json:
        runs.write_json(options.json, {"what": what} | result)


def compare(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, dimensions: int, seed: int = 0
) -> dict[str, Any]:
    """Accuracies of the nearest training example in Euclidean distance and under a learnt ||.||_A.

    Args:
      x, x_test: [N, D]. y, y_test: [N]. dimensions: the rank of A at most. seed: of the optimiser's start.

    Returns:
      `euclidean` and `mahalanobis`, shares of the test examples.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
    from sklearn.pipeline import make_pipeline

    dimensions = min(dimensions, *x.shape)  # there are no more principal components
    # NCA starts from, and is as fast as, the principal components
    learnt = make_pipeline(
        PCA(dimensions, random_state=seed),
        NeighborhoodComponentsAnalysis(init="identity", random_state=seed),
        KNeighborsClassifier(1),
    )
    plain = KNeighborsClassifier(1)
    return {
        "euclidean": float(plain.fit(x, y).score(x_test, y_test)),
        "mahalanobis": float(learnt.fit(x, y).score(x_test, y_test)),
    }


Examples = tuple[np.ndarray, np.ndarray]


def _examples(options: argparse.Namespace) -> tuple[str, Examples, Examples]:
    """What they are, and training and test examples: grey levels from 0 to 1, or a run's embeddings."""
    run = Path(options.run_or_dataset)
    if (run / "config.json").exists():
        config, model = runs.read_config(run), load_model(run)
        dataset = runs.load_dataset(config, options.data_dir)
        if (dataset.image_shape, tuple(dataset.class_names)) != (model.image_shape, tuple(model.class_names)):
            raise UserError(f"{config.dataset} has other classes or other images than those {run} was trained on")
        what, features = f"embeddings of {run}", lambda split: model.embed(split.images)
    else:
        dataset = data.load(options.run_or_dataset, options.data_dir)
        what, features = f"pixels of {dataset.name}", _pixels
    first = _first(np.asarray(dataset.train.labels), options.examples)
    train = data.Split(dataset.train.images[first], np.asarray(dataset.train.labels)[first])
    return what, (features(train), train.labels), (features(dataset.test), np.asarray(dataset.test.labels))


def _pixels(split: data.Split) -> np.ndarray:
    return np.asarray(split.images, np.float64).reshape(len(split.images), -1) / 255


def _first(labels: np.ndarray, examples: int) -> np.ndarray:
    """Numbers of the first examples of each class, about so many together."""
    each = -(-examples // (labels.max() + 1))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in np.unique(labels)]))


def _parser() -> Parser:
    parser = Parser("mahalanobis", __doc__)
    parser.add_argument("run_or_dataset", metavar="RUN_OR_DATASET")
    parser.add_argument("--data-dir", help="folder with the data set's files")
    parser.add_argument("--examples", type=int, default=2000, help="training examples in all (default: 2000)")
    parser.add_argument("--dimensions", type=int, default=32, help="largest rank of A (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of principal components and of NCA (default: 0)")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser
