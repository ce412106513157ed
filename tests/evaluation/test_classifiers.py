"""Classifiers of real images that are shown others."""

from conftest import small_run

from journey.attribution.baselines import Embeddings, Encoder
from journey.data.embedded import Digits
from journey.engine.workspace import get
from journey.evaluation import classifiers
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images


def test_a_little_ink_where_real_images_have_none_changes_little_of_what_they_show(workspace):
    """As generated images have it: a classifier of scaled pixels took nearly all of them for one class."""
    of = load_experiment(small_run(dataset=Digits(num_train=400)), workspace.store)
    embedded = Embeddings(of.images, Encoder(side=32))
    by = classifiers.train_classifiers(embedded, workspace)
    held_out = read_images(get(of.images, workspace).path / "held_out")
    pictures = as_pixels(held_out.images).numpy()
    pictures[..., 0] += 0.2  # on the left border, a tenth of full ink
    said = by.labels(pictures, get(embedded, workspace).array("held_out.npy"))["pixels"]
    assert by.num_held_out == len(said)
    assert (said == held_out.labels).mean() > by.accuracy["pixels"] - 0.02 > 0.9
