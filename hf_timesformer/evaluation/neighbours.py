"""How good features are, without training anything: the nearest neighbours among known videos vote."""

from collections.abc import Mapping

import numpy as np


TEMPERATURE = 0.07  # of the votes, as in DINO's evaluation


def nearest_classes(
    known: np.ndarray, known_labels: np.ndarray, features: np.ndarray, *, k: int = 20
) -> np.ndarray:
    """The class that the `k` nearest known videos vote for, `(m,)`, weighted as in DINO (Caron et
    al., 2021).

    Args:
        known: features `(n, hidden)` of videos whose classes `known_labels` `(n,)` are known.
        features: `(m, hidden)`.

    Nearness is the cosine; a vote counts `exp(cosine / 0.07)`. Raises ValueError for fewer than `k`
    known videos.
    """
    if not 1 <= k <= len(known):
        raise ValueError(f"k must lie between 1 and the {len(known)} known videos, got {k}")
    classes, numbers = np.unique(known_labels, return_inverse=True)
    cosine = _unit(features) @ _unit(known).T  # (m, n)
    nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]  # (m, k)
    votes = np.exp(np.take_along_axis(cosine, nearest, axis=1) / TEMPERATURE)
    sums = np.zeros((len(features), len(classes)))
    for column in range(k):
        np.add.at(sums, (np.arange(len(features)), numbers[nearest[:, column]]), votes[:, column])
    return classes[sums.argmax(axis=1)]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows `(n, hidden)` scaled to length 1, float64."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def knn_accuracy(
    known: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    *,
    k: int = 20,
    standardize: bool = True,
) -> float:
    """The share of the held-out videos whose class their nearest neighbours name right, by cosine.

    Args:
        known: what `read_features` gives of the videos with known classes: `features`
            `(n, hidden)` and `label_name` `(n,)`.
        held_out: the same of the others.
        k: how many neighbours vote.
        standardize: give every dimension the mean 0 and the spread 1 over the known videos first;
            without it a few dimensions that are large everywhere decide the cosine.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: videos without a class.
    """
    for features in (known, held_out):
        if any(name is None for name in features["label_name"]):
            raise ValueError("neighbours vote for classes: these videos have none, or several")
    one, other = known["features"], held_out["features"]
    if standardize:
        mean, spread = one.mean(axis=0), np.maximum(one.std(axis=0), 1e-12)
        one, other = (one - mean) / spread, (other - mean) / spread
    found = nearest_classes(one, known["label_name"], other, k=k)
    return float((found == held_out["label_name"]).mean())
