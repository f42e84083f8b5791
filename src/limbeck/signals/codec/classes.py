"""Classes of rows and clusters of ids, found together in a shard's own rows.

What a teacher expects after a determiner are other words than after a verb. Rows (as sets of ids) are put into classes and ids
into clusters, in turn, each where it is most probable given the others: co-clustering with the information-theoretic loss
(Dhillon, Mallela & Modha, KDD 2003), P(id | class) = P(cluster | class) P(id | cluster). On SmolLM2's draws this takes an
id from 8.5 to 6.9 bits (32 classes, 64 clusters, sets), for half a bit per id that rows and tables spend on saying which.

Only the writer runs this: a reader is told the outcome. The last cluster is for ids too rare for a cluster of their own to pay.

Shapes: E ids of all sets, G sets, U ids that are told apart, S classes, M clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WARM_UP = 4  # rounds in which classes form from single ids, before these are in clusters
_ROUNDS = 12


@dataclass(frozen=True)
class Classes:
    """The cluster of each id, and what decides the class of a set."""

    cluster_U: np.ndarray  # int64
    log_p_US: np.ndarray  # float32: ln P(cluster of the id | class)


def find_classes(sets_E: np.ndarray, ids_E: np.ndarray, *, num_sets: int, num_ids: int, classes: int, clusters: int) -> Classes:
    """Clusters of ids 0 .. num_ids - 1, which are in order of frequency; `sets_E` ascends. Deterministic."""
    ids = torch.from_numpy(ids_E)
    starts_G = torch.from_numpy(np.searchsorted(sets_E, np.arange(num_sets)))
    class_G = np.zeros(num_sets, dtype=np.int64)
    # A set begins in a class that goes with its rarest id: the frequent ones are everywhere.
    np.maximum.at(class_G, sets_E, ids_E)
    class_G %= classes
    cluster_U = np.arange(num_ids) % (clusters - 1)
    frequency_U = np.bincount(ids_E, minlength=num_ids)
    for round_ in range(_ROUNDS):
        seen_US = _together(ids_E, class_G[sets_E], num_ids, classes)
        if round_ < _WARM_UP:
            smooth_US = seen_US + 20.0 * frequency_U[:, None] / max(frequency_U.sum(), 1)
            log_p_US = torch.log(torch.from_numpy(smooth_US / (seen_US.sum(0) + 20.0) + 1e-12))
        else:
            cluster_U = _clusters(seen_US, cluster_U, clusters=clusters)
            log_p_US = _log_clusters(seen_US, cluster_U, clusters=clusters)[torch.from_numpy(cluster_U)]
        prior_S = torch.from_numpy(np.log(np.bincount(class_G, minlength=classes) + 0.5))
        scores_GS = _sums(log_p_US.float(), ids, starts_G) + prior_S.float()
        class_G = scores_GS.argmax(1).numpy()
    seen_US = _together(ids_E, class_G[sets_E], num_ids, classes)
    cluster_U = _clusters(seen_US, cluster_U, clusters=clusters)
    return Classes(cluster_U, _log_clusters(seen_US, cluster_U, clusters=clusters)[torch.from_numpy(cluster_U)].float().numpy())


def assign(sets_E: np.ndarray, ids_E: np.ndarray, *, num_sets: int, log_p_US: np.ndarray) -> np.ndarray:
    """The most probable class of each set, int64 [G]; class 0 for an empty one."""
    starts_G = torch.from_numpy(np.searchsorted(sets_E, np.arange(num_sets)))
    return _sums(torch.from_numpy(log_p_US), torch.from_numpy(ids_E), starts_G).argmax(1).numpy()


def _sums(log_p_US: Tensor, ids_E: Tensor, starts_G: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(ids_E, log_p_US, starts_G, mode="sum")


def _together(ids_E: np.ndarray, class_E: np.ndarray, num_ids: int, classes: int) -> np.ndarray:
    """How often each id is in a set of each class, float64 [U, S]."""
    return np.bincount(ids_E * classes + class_E, minlength=num_ids * classes).reshape(num_ids, classes).astype(np.float64)


def _log_clusters(seen_US: np.ndarray, cluster_U: np.ndarray, *, clusters: int) -> Tensor:
    """ln P(cluster | class), float64 [M, S]."""
    return torch.log(torch.from_numpy(_profiles(seen_US, cluster_U, clusters=clusters)))


def _profiles(seen_US: np.ndarray, cluster_U: np.ndarray, *, clusters: int) -> np.ndarray:
    """P(cluster | class), a little smoothed, [M, S]."""
    seen_MS = np.zeros((clusters, seen_US.shape[1]))
    np.add.at(seen_MS, cluster_U, seen_US)
    return (seen_MS + 0.1) / (seen_MS + 0.1).sum(0)


def _clusters(seen_US: np.ndarray, cluster_U: np.ndarray, *, clusters: int) -> np.ndarray:
    """The best cluster of each id, whose classes are most like its own; the last where others gain less than a name costs."""
    seen_MS = np.zeros((clusters, seen_US.shape[1]))
    np.add.at(seen_MS, cluster_U, seen_US)
    share_MS = seen_MS + 0.1 + 0.025 * seen_US.sum() / seen_MS.size
    score_UM = torch.from_numpy(seen_US) @ torch.log(torch.from_numpy(share_MS / share_MS.sum(1, keepdims=True))).T
    best_U = score_UM[:, :-1].argmax(1)
    gain_U = score_UM.gather(1, best_U[:, None])[:, 0] - score_UM[:, -1]
    costs = np.log(clusters)
    return torch.where(gain_U > costs, best_U, clusters - 1).numpy()
