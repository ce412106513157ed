"""Very small datasets and a very small pipeline, in the formats in which they are distributed."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torchvision.datasets import CIFAR10
from transformers import CLIPTextConfig, CLIPTextModel

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
Sizes = dict[int, tuple[str, tuple[int, int]]]  # image id: mode, (width, height)


def cifar10(root: Path, random: np.random.Generator, monkeypatch) -> dict[str, np.ndarray]:
    """Write CIFAR-10 with ten images in a batch, one of each class, and return their pixels."""
    pixels = {name: random.integers(256, size=(10, 3072), dtype=np.uint8) for name in BATCHES}
    batches = {name: (data, list(range(10))) for name, data in pixels.items()}
    write_batches(root, monkeypatch, batches)
    return pixels


def write_batches(
    root: Path, monkeypatch, batches: dict[str, tuple[np.ndarray, list[int]]]
) -> None:
    """Write pixels [n, 3072] and labels as pickles whose checksums torchvision accepts."""
    folder, checksums = root / "cifar-10-batches-py", {}
    folder.mkdir()
    contents = {name: {"data": data, "labels": labels} for name, (data, labels) in batches.items()}
    contents["batches.meta"] = {"label_names": CLASSES}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksums.pop("batches.meta")}
    *train, test = map(list, checksums.items())
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", meta)


def idx(folder: Path, random: np.random.Generator, count: int = 20) -> dict[str, np.ndarray]:
    """Write images and labels as IDX files, as MNIST has them, and return the pixels by part."""
    folder.mkdir(parents=True)
    labels = np.arange(count, dtype=np.uint8) % 10
    pixels = {}
    for part in ("train", "t10k"):
        pixels[part] = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        images = struct.pack(">4i", 2051, count, 28, 28) + pixels[part].tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        header = struct.pack(">2i", 2049, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return pixels


SQUARES = dict.fromkeys(range(12), ("RGB", (32, 32)))


def coco(root: Path, train: Sizes = SQUARES, val: Sizes = SQUARES) -> None:
    """Write MS COCO 2017: noise of the given modes and sizes."""
    for part, images in (("train2017", train), ("val2017", val)):
        (root / part).mkdir(parents=True)
        for image_id, (mode, size) in images.items():
            photograph(root / part / coco_name(image_id), mode, size, image_id)
        write_captions(root / f"annotations/captions_{part}.json", list(images))


def coco_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def photograph(path: Path, mode: str, size: tuple[int, int], seed: int) -> None:
    """Write a JPEG of noise."""
    shape = (size[1], size[0], len(mode))
    noise = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.frombytes(mode, size, noise.tobytes()).save(path, "JPEG")


def write_captions(path: Path, ids: list[int], year: int = 2017) -> None:
    """Write five to seven captions of each image, shuffled, some with white space around them."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in ids:
        name = {"file_name": coco_name(i), "id": i}
        images.append({"license": 3, "height": 24, "width": 40, **name})
        for k in range(5 + i % 3):
            caption = f"Caption {k} of {i}. \n"[: None if k % 2 else -2]
            annotations.append({"image_id": i, "id": 100 * k + i, "caption": caption})
    shuffled = [list(random.permutation(np.array(rows, object))) for rows in (images, annotations)]
    info = {"description": "COCO 2017 Dataset", "version": "1.0", "year": year}
    contents = {"info": info, "licenses": [], "images": shuffled[0], "annotations": shuffled[1]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(contents))


def pipeline(root: Path) -> None:
    """Write the encoders of Stable Diffusion 2 as they were released, with few and random weights.

    An eighth of a side in 4 channels, states of 1,024 numbers, 77 tokens, each of which is a byte.
    """
    levels = 4
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=8,
        sample_size=768,
    ).save_pretrained(root / "vae")
    characters = sorted(ByteLevel.alphabet())
    tokens = [*characters, *(f"{c}</w>" for c in characters), BEGIN, END]
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=1024, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=16, hidden_act="gelu", bos_token_id=tokens.index(BEGIN),
        eos_token_id=tokens.index(END), pad_token_id=tokens.index("!"),
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(root / "text_encoder")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END}
    files = {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "tokenizer_config.json": {**settings, **special},
        "special_tokens_map.json": {"pad_token": "!", **special},
    }
    (root / "tokenizer").mkdir()
    (root / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        (root / "tokenizer" / name).write_text(json.dumps(content))
