"""Are planted copies found? Training images are ranked by a score; a rank of 1 is first, and equal scores are ranked by row.

Q  queries;  N  training images;  c  copies of each query's image
"""

import numpy as np


def ranks(scores: np.ndarray) -> np.ndarray:
    """Of every training image, by scores [..., N]. int64 [..., N]

    >>> ranks(np.array([0.5, 2.0, 0.5]))
    array([2, 1, 3])
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.broadcast_to(np.arange(1, scores.shape[-1] + 1), order.shape), -1)
    return found


def of_others(ranked: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Of the copies of all other queries' images. ranked: [..., Q, N]; copies: rows [Q, c] → [..., Q, (Q − 1) c]

    >>> of_others(np.array([[1, 2, 3], [3, 2, 1]]), copies=np.array([[0], [2]]))
    array([[3],
           [3]])
    """
    of_query = [ranked[..., q, np.delete(copies, q, 0).ravel()] for q in range(len(copies))]
    return np.stack(of_query, -2)


def recall(of_copies: np.ndarray, k: int) -> np.ndarray:
    """How many copies are among the first k, as a share of how many could be: min(k, c). of_copies: ranks [..., c] → [...]

    >>> recall(np.array([1, 3, 20]), k=2)
    np.float64(0.5)
    """
    return (of_copies <= k).sum(-1) / min(k, of_copies.shape[-1])


def by_chance(k: int, num_copies: int, num_train: int) -> float:
    """What `recall` is expected to be of a random order: k c / N copies are among the first k.

    >>> by_chance(k=10, num_copies=5, num_train=1000)
    0.01
    """
    return k * num_copies / num_train / min(k, num_copies)
