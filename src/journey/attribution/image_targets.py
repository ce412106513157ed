"""Numbers of final images, by which a picture is attributed and retrained models are compared.

x  final images, as inputs of the model: pixels, or latents [B, …];  D  elements of one
q  the query of each [B]

All are differentiable in x, and the same function is differentiated and measured.
"""

from collections.abc import Callable
from typing import assert_never

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from journey.data.images import train_images
from journey.diffusion.trajectories import final_samples, train_examples
from journey.engine.workspace import Workspace
from journey.pipeline.images import as_pixels
from journey.pipeline.interfaces import Images, Sample
from journey.pipeline.settings import ImageTarget
from journey.pipeline.subsets import balanced_order

MAX_IMAGES = 5000  # training images that a classifier and a principal axis are computed from

TargetFunction = Callable[[Tensor, Tensor], Tensor]
"""(x [B, …], q [B]) → numbers [B]"""


def target_function(
    target: ImageTarget, trajectories: Sample, workspace: Workspace, device: torch.device
) -> TargetFunction:
    """Return the function of final images that a target is.

    Raises:
        ValueError: The target is of features, which an evaluation computes by its encoder.
    """
    final = final_samples(trajectories, workspace).x0.to(device)
    checkpoint = trajectories.checkpoint
    match target:
        case ImageTarget.distance:
            return lambda x, q: (x - final[q]).square().flatten(1).mean(1)
        case ImageTarget.projection:
            train = train_examples(checkpoint, workspace).x0
            own = final - train.mean(0).to(device)
            return lambda x, q: -(x * own[q]).flatten(1).mean(1)
        case ImageTarget.direction:
            labels = train_images(checkpoint.images, workspace).labels
            rows = torch.from_numpy(balanced_order(labels, seed=0)[:MAX_IMAGES])
            train = train_examples(checkpoint, workspace).x0[rows].flatten(1)
            axis = principal_axis(train).to(device)
            return lambda x, q: linear(x.flatten(1), axis[None])[:, 0] / len(axis) ** 0.5
        case ImageTarget.class_loss:
            weight, bias = linear_classifier(checkpoint.images, workspace)
            weight, bias = weight.to(device), bias.to(device)
            labels_of_queries = linear(final.flatten(1), weight, bias).argmax(1)

            def class_loss(x: Tensor, q: Tensor) -> Tensor:
                logits = linear(x.flatten(1), weight, bias)
                return cross_entropy(logits, labels_of_queries[q], reduction="none")

            return class_loss
        case ImageTarget.features:
            raise ValueError("features of images are those of an encoder")
        case _:
            assert_never(target)


def principal_axis(train: Tensor) -> Tensor:
    """Return the first principal axis of training examples [N, D], whose largest entry is positive.

    It is the direction of unit length along which they differ most. [D]
    """
    centred = (train - train.mean(0)).double()
    axis = torch.linalg.svd(centred, full_matrices=False)[2][0]
    return (axis * axis[axis.abs().argmax()].sign()).float()


def linear_classifier(images: Images, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Return weights [classes, D] and bias [classes] of a logistic regression on pixels in −1…1.

    The classes are in the order of their labels.
    """
    train = train_images(images, workspace)
    rows = np.sort(balanced_order(train.labels, seed=0)[:MAX_IMAGES])
    pixels = as_pixels(train.images[rows]).flatten(1).numpy()
    fitted = LogisticRegression(C=0.1, max_iter=5000).fit(pixels, train.labels[rows])
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # of two classes, the logit of the second alone
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
