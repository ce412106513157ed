from conftest import small_run

from journey.attribution.baselines import Embeddings, Encoder
from journey.data.embedded import Digits
from journey.engine.workspace import get
from journey.evaluation.classifiers import train_classifiers
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images


def test_faint_ink_where_real_images_have_none_changes_few_labels(workspace):
    """Generated images have such ink. With scaled pixels nearly all of them would get one class."""
    images = load_experiment(small_run(dataset=Digits(num_train=400)), workspace.store).images
    embeddings = Embeddings(images, Encoder(side=32))
    classifiers = train_classifiers(embeddings, workspace)
    held_out = read_images(get(images, workspace).path / "held_out")
    pictures = as_pixels(held_out.images).numpy()
    pictures[..., 0] += 0.2  # on the left border, a tenth of full ink
    features = get(embeddings, workspace).array("held_out.npy")
    labels = classifiers.labels(pictures, features)["pixels"]
    assert classifiers.num_held_out == len(labels)
    assert (labels == held_out.labels).mean() > classifiers.accuracy["pixels"] - 0.02 > 0.9
