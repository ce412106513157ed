"""Datasets and a pipeline in the formats they are distributed in, and very small."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torchvision import datasets
from transformers import CLIPTextConfig, CLIPTextModel

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def cifar10(root: Path, random: np.random.Generator, monkeypatch) -> dict[str, np.ndarray]:
    """Ten images a batch, one of each class; returns the pixels."""
    pixels = {name: random.integers(256, size=(10, 3072), dtype=np.uint8) for name in BATCHES}
    write_batches(
        root, monkeypatch, {name: (data, list(range(10))) for name, data in pixels.items()}
    )
    return pixels


def write_batches(
    root: Path, monkeypatch, batches: dict[str, tuple[np.ndarray, list[int]]]
) -> None:
    """An archive of pixels [n, 3072] and labels by batch, pickled as CIFAR-10's are, with checksums that this process knows."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    contents = {name: {"data": data, "labels": labels} for name, (data, labels) in batches.items()}
    contents["batches.meta"] = {"label_names": CLASSES}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[name, sums[name]] for name in BATCHES[:-1]]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    )


def idx(folder: Path, random: np.random.Generator, count: int = 20) -> dict[str, np.ndarray]:
    """Images and labels as MNIST has them; returns the pixels of both parts."""
    folder.mkdir(parents=True)
    pixels = {
        part: random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        for part in ("train", "t10k")
    }
    for part, images in pixels.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        )
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, count) + labels.tobytes()
        )
    return pixels


# ------------------------------------------------------------------------------------------------------- COCO


def coco(
    root: Path,
    train: dict[int, tuple[str, tuple[int, int]]],
    val: dict[int, tuple[str, tuple[int, int]]],
) -> None:
    """The layout of 2017. train and val: the mode and size of every image, by its id."""
    for part, images in (("train2017", train), ("val2017", val)):
        (root / part).mkdir(parents=True)
        for image_id, (mode, size) in images.items():
            photograph(root / part / coco_name(image_id), mode, size, image_id)
        write_captions(root / f"annotations/captions_{part}.json", list(images))


def coco_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def photograph(path: Path, mode: str, size: tuple[int, int], seed: int) -> None:
    """A real JPEG of noise."""
    random = np.random.default_rng(seed)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    Image.frombytes(mode, size, random.integers(256, size=shape, dtype=np.uint8).tobytes()).save(
        path, "JPEG"
    )


def write_captions(path: Path, ids: list[int], year: int = 2017) -> None:
    """As COCO has them: in no order, five to seven of an image, some with white space around."""
    random = np.random.default_rng(0)
    images = [
        {"license": 3, "file_name": coco_name(i), "height": 24, "width": 40, "id": i} for i in ids
    ]
    annotations = [
        {
            "image_id": i,
            "id": 100 * k + i,
            "caption": f"Caption {k} of {i}. \n"[: None if k % 2 else -2],
        }
        for i in ids
        for k in range(5 + i % 3)
    ]
    info = {
        "description": "COCO 2017 Dataset",
        "version": "1.0",
        "year": year,
        "date_created": "2017/09/01",
    }
    shuffled = [list(random.permutation(np.array(of, object))) for of in (images, annotations)]
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(
            {"info": info, "licenses": [], "images": shuffled[0], "annotations": shuffled[1]}
        )
    )


# ------------------------------------------------------------------------------------------- Stable Diffusion 2


def pipeline(root: Path) -> None:
    """Its encoders as they were released, with few and random weights: an eighth of a side in 4 channels, states of 1,024
    numbers, 77 tokens, each a byte.
    """
    levels = 4
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, norm_num_groups=8, sample_size=768,
    ).save_pretrained(root / "vae")  # fmt: skip
    characters = sorted(ByteLevel.alphabet())
    tokens = [*characters, *(f"{c}</w>" for c in characters), BEGIN, END]
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=1024, intermediate_size=64, num_hidden_layers=1, num_attention_heads=16,
            hidden_act="gelu", bos_token_id=tokens.index(BEGIN), eos_token_id=tokens.index(END), pad_token_id=tokens.index("!"),
        )
    ).save_pretrained(root / "text_encoder")  # fmt: skip
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END}
    files = {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "pad_token": END,
            **special,
        },
        "special_tokens_map.json": {"pad_token": "!", **special},
    }
    (root / "tokenizer").mkdir()
    (root / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        (root / "tokenizer" / name).write_text(json.dumps(content))
