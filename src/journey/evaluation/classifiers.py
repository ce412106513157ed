"""Two classifiers of generated images, trained on the real images of a dataset.

pixels    support vector machine with a Gaussian kernel on unscaled pixels. Scaled ones would give
          most weight to pixels that are nearly always black in real images.
features  logistic regression on the features of an encoder
"""

from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from journey.attribution.baselines import Embeddings
from journey.diffusion.trajectories import decode_pictures
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageFiles, as_pixels, read_images
from journey.pipeline.interfaces import Sample
from journey.pipeline.subsets import balanced_order

MAX_IMAGES = 5000  # for training: the cost of a support vector machine is quadratic


@dataclass(frozen=True)
class Classifiers:
    """Two trained classifiers.

    Attributes:
        pixels: The classifier of pixels.
        features: The classifier of features.
        accuracy: Accuracy on the held-out images, by classifier.
        agreement: Share of the held-out images that both give the same class.
        num_held_out: Number of these images.
    """

    pixels: SVC
    features: Pipeline
    accuracy: dict[str, float]
    agreement: float
    num_held_out: int

    def labels(self, pictures: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
        """Return the classes of pictures in −1…1 [..., C, H, W] and their features [..., E]."""
        shape = pictures.shape[:-3]
        return {
            "pixels": self.pixels.predict(_flatten(pictures, 3)).reshape(shape),
            "features": self.features.predict(_flatten(features, 1)).reshape(shape),
        }


def train_classifiers(embeddings: Embeddings, workspace: Workspace) -> Classifiers:
    """Return classifiers of the classes of a dataset, of which there must be several."""
    folder = get(embeddings.images, workspace).path
    train, held_out = read_images(folder / "train"), read_images(folder / "held_out")
    features = get(embeddings, workspace)

    # Train on a balanced selection of the training images.
    selection = balanced_order(train.labels, seed=0)[:MAX_IMAGES]
    labels = train.labels[selection]
    by_pixels = SVC().fit(_flatten(_pixels(train.images[selection]), 3), labels)
    by_features = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    by_features.fit(features.array("train.npy")[selection], labels)

    # Test on the held-out images.
    trained = Classifiers(by_pixels, by_features, {}, 0.0, len(held_out))
    predicted = trained.labels(_pixels(held_out.images), features.array("held_out.npy"))
    accuracy = {name: float((y == held_out.labels).mean()) for name, y in predicted.items()}
    agreement = float((predicted["pixels"] == predicted["features"]).mean())
    return replace(trained, accuracy=accuracy, agreement=agreement)


def classify_final_samples(
    classifiers: Classifiers, embeddings: Embeddings, trajectories: Sample, workspace: Workspace
) -> dict[str, np.ndarray]:
    """Return the class of each final sample by both classifiers. int64 [Q]"""
    import torch

    final_samples = np.array(get(trajectories, workspace).array("final.npy"))
    pictures = decode_pictures(final_samples, trajectories, workspace)
    features = embeddings.encoder.load()(torch.from_numpy(pictures)).numpy()
    return classifiers.labels(pictures, features)


def _pixels(images: np.ndarray | ImageFiles) -> np.ndarray:
    """Return images as pixels in −1…1."""
    return np.asarray(as_pixels(np.asarray(images)))


def _flatten(arrays: np.ndarray, num_axes: int) -> np.ndarray:
    """Return arrays [..., *shape] as [B, elements], where shape has `num_axes` axes."""
    return arrays.reshape(-1, int(np.prod(arrays.shape[-num_axes:])))
