"""What generated images show, by two classifiers of different kind that were trained on real ones.

pixels    a support vector machine with a Gaussian kernel on pixels, as they are: divided by their deviation, those that are
          nearly always black on real images would decide what generated ones show
features  logistic regression on what an encoder sees
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from journey.attribution.baselines import Embeddings
from journey.diffusion.trajectories import decode_pictures
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import as_pixels, read_images
from journey.pipeline.interfaces import Sample
from journey.pipeline.subsets import balanced_order

MOST = 5000  # images that they are trained on: a support vector machine takes the square of them


@dataclass(frozen=True)
class Classifiers:
    """accuracy: of each on the held-out images, by its name; agreement: how often both say the same of those."""

    pixels: SVC
    features: Pipeline
    accuracy: dict[str, float]
    agreement: float
    num_held_out: int

    def labels(self, pictures: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
        """What each says of pictures in −1…1, [..., C, H, W], and of their features, [..., E]. int64 [...]"""
        of_pixels = self.pixels.predict(_flat(pictures, 3)).reshape(pictures.shape[:-3])
        return {
            "pixels": of_pixels,
            "features": self.features.predict(_flat(features, 1)).reshape(features.shape[:-1]),
        }


def train_classifiers(of: Embeddings, workspace: Workspace) -> Classifiers:
    """Classifiers of the classes of a dataset. Raises: ValueError if there is one class only."""
    kept, embedded = get(of.images, workspace).path, get(of, workspace)
    train, held_out = read_images(kept / "train"), read_images(kept / "held_out")
    some = balanced_order(train.labels, seed=0)[:MOST]
    pixels = SVC()
    pixels.fit(_flat(_pixels(train.images[some]), 3), train.labels[some])
    features = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    features.fit(embedded.array("train.npy")[some], train.labels[some])
    found = Classifiers(pixels, features, {}, 0.0, 0)
    said = found.labels(_pixels(held_out.images), embedded.array("held_out.npy"))
    accuracy = {name: float((labels == held_out.labels).mean()) for name, labels in said.items()}
    agreement = float((said["pixels"] == said["features"]).mean())
    return Classifiers(pixels, features, accuracy, agreement, len(held_out))


def classify_final_samples(
    by: Classifiers, of: Embeddings, trajectories: Sample, workspace: Workspace
) -> dict[str, np.ndarray]:
    """What each says of the final images of some journeys. int64 [Q]"""
    import torch

    pictures = decode_pictures(
        np.array(get(trajectories, workspace).array("final.npy")), trajectories, workspace
    )
    return by.labels(pictures, of.encoder.load()(torch.from_numpy(pictures)).numpy())


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.asarray(as_pixels(images))


def _flat(arrays: np.ndarray, each: int) -> np.ndarray:
    """[..., each axes] → [B, elements]"""
    return arrays.reshape(-1, int(np.prod(arrays.shape[-each:])))
