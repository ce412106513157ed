"""Portraits composed of named parts."""

import itertools

import numpy as np
import pytest
import yaml

from journey.config.compose import CONF
from journey.data.parts import (
    FAMILIES,
    HAT,
    HEAD,
    HEADS,
    NUM_RARE,
    SIZES,
    Parts,
    caption,
    is_unseen,
    layers,
    read_parts,
    render,
)
from journey.pipeline.images import content_hash


def parts_of(images) -> np.ndarray:
    """Return the parts that ids name."""
    return np.array(
        [[int(i) for i in name.removeprefix("parts/").split("-")] for name in images.ids]
    )


@pytest.fixture(scope="module")
def loaded():
    return Parts(num_train=600, near_duplicates=0.1).load()


def test_every_variant_is_read_back_from_clean_and_from_noisy_pictures():
    random = np.random.default_rng(0)
    parts = random.integers(0, SIZES, (60, len(SIZES)))
    for family, size in enumerate(SIZES):
        parts[:size, family] = np.arange(size)
    pictures = np.rint(render(parts) * 255) / 255
    read, errors = read_parts(pictures)
    np.testing.assert_array_equal(read, parts)
    assert errors.max() < 1 / 255
    read, errors = read_parts(pictures + 0.2 * random.standard_normal(pictures.shape))
    np.testing.assert_array_equal(read, parts)
    assert errors == pytest.approx(0.2, abs=0.02)


def test_a_portrait_is_its_layers_laid_over_each_other():
    parts = np.array([[2, 5, 3, 0, 4, 1]])
    expected = 0.0
    for (colours, coverage), variant in zip(layers(16), (2, 5 * 12 + 3, 0, 4, 1), strict=True):
        expected = (1 - coverage[variant]) * expected + colours[variant]
    np.testing.assert_allclose(render(parts, 16)[0], expected)
    assert (layers(16)[0][1] == 1).all(), "backgrounds cover everything"


def test_images_are_what_their_ids_and_captions_say(loaded):
    for images in loaded:
        parts = parts_of(images)
        np.testing.assert_array_equal(images.images, np.rint(render(parts) * 255))
        assert list(images.captions) == [(caption(row),) for row in parts]
        np.testing.assert_array_equal(images.labels, parts[:, HEAD])
        assert images.class_names == FAMILIES["head"]
    compositions = [tuple(row) for images in loaded for row in parts_of(images)]
    assert len(set(compositions)) == len(compositions) == 1600


def test_captions_of_all_variants_differ():
    for family, size in enumerate(SIZES):
        parts = np.zeros((size, len(SIZES)), int)
        parts[:, family] = np.arange(size)
        assert len({caption(row) for row in parts}) == size
    assert caption(np.zeros(6, int)) == "a cat in a plain red shirt, under a blue sky"
    assert caption(np.array([2, 5, 1, 13, 1, 1])) == (
        "an alien in a striped blue shirt with round glasses and a top hat, at night"
    )


def test_some_pairs_of_head_and_hat_are_held_out(loaded):
    train, held_out = (np.array([is_unseen(row) for row in parts_of(i)]) for i in loaded)
    assert not train.any()
    assert held_out.sum() == len(held_out) / 2
    pairs = itertools.product(range(SIZES[HEAD]), range(1, SIZES[HAT]))
    unseen = [is_unseen((0, 0, 0, head, 0, hat)) for head, hat in pairs]
    assert 0.1 < np.mean(unseen) < 0.15


def test_new_heads_are_in_no_data_set_that_does_not_name_them(loaded):
    num_heads = len(FAMILIES["head"])
    assert len(HEADS) > num_heads
    for images in loaded:
        assert parts_of(images)[:, HEAD].max() < num_heads
    hashes = content_hash(*Parts(num_train=300).load())
    assert hashes.startswith("e6e5c011689a5a65"), "as before there were new heads"


@pytest.mark.parametrize("head", HEADS[len(FAMILIES["head"]) :])
def test_portraits_with_a_new_head_are_read_back_from_clean_and_from_noisy_pictures(head):
    train, held_out = Parts(num_train=40, near_duplicates=0.2, head=head).load()
    assert {HEADS[i] for images in (train, held_out) for i in images.labels} == {head}
    assert all(f" {head} in a" in caption for (caption,) in train.captions)
    parts, pictures = parts_of(train), train.images / 255
    np.testing.assert_array_equal(read_parts(pictures, new_heads=True)[0], parts)
    noise = np.random.default_rng(0).standard_normal(pictures.shape)
    np.testing.assert_array_equal(read_parts(pictures + 0.2 * noise, new_heads=True)[0], parts)
    assert (read_parts(pictures)[0][:, HEAD] < len(FAMILIES["head"])).all()


def test_prompts_of_finetune_are_captions_of_held_out_portraits():
    experiment = yaml.safe_load((CONF / "experiment/finetune.yaml").read_text())
    train, held_out = Parts(**experiment["dataset"]).load()
    captions = [caption for (caption,) in held_out.captions]
    assert experiment["sampling"]["prompts"] == captions[:72] + captions[500:524]
    assert len(train) == 200
    unseen = [is_unseen(row) for row in parts_of(held_out)]
    assert not any(unseen[:72])
    assert all(unseen[500:524])


def test_near_duplicates_differ_from_an_image_in_one_part(loaded):
    parts = parts_of(loaded[0])
    differences = (parts[-60:, None] != parts[None, :-60]).sum(-1).min(1)
    assert (differences == 1).all()


def test_rare_variants_are_rare():
    parts = parts_of(Parts(num_train=3000).load()[0])
    for family, size in enumerate(SIZES):
        frequency = np.bincount(parts[:, family], minlength=size) / len(parts)
        expected = 0.1 / (size - NUM_RARE + 0.1 * NUM_RARE)
        assert frequency[-NUM_RARE:] == pytest.approx(expected, abs=0.005)
        assert frequency[:-NUM_RARE].min() > 4 * expected


def test_the_seed_decides():
    first, again, other = (Parts(num_train=20, seed=seed).load()[0].ids for seed in (0, 0, 1))
    assert first == again != other
