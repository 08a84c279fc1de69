"""A transformer that predicts the next character: an ordinary LightningModule."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, with normalisation before each (Radford et al., 2019).

    Args:
        width: size of the state of a character.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, state: Tensor) -> Tensor:
        """Return the next state, of the same shape (batch, characters, width)."""
        batch, characters, width = state.shape
        parts = self.attention(self.norms[0](state)).view(batch, characters, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        state = state + self.mixed(seen.transpose(1, 2).reshape(batch, characters, width))
        return state + self.feed_forward(self.norms[1](state))


class SourceTransformer(L.LightningModule):
    """Write source code, character by character.

    Args:
        context: characters that it looks at, at most; as in the data.
        width: size of the state of a character.
        layers: number of blocks.
        heads: attention heads of each.
        lr: largest learning rate of AdamW; it rises at first, and falls to next to nothing in the end.
        symbols: number of different characters.
    """

    def __init__(
        self, context: int = 96, width: int = 96, layers: int = 3, heads: int = 4, lr: float = 4e-3, symbols: int = 128
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.characters = nn.Embedding(symbols, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits of the next character, shape (batch, characters, symbols), for text (batch, characters)."""
        state = self.blocks(self.characters(text) + self.places[: text.shape[1]])
        return self.norm(state) @ self.characters.weight.T

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._assess("train", batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss of one validation batch."""
        self._assess("val", batch)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return how surprising each character is, in bits, shape (batch, context)."""
        return self._losses(batch) / math.log(2)

    @torch.no_grad()
    def write(self, text: str, length: int, temperature: float = 0.7, seed: int = 0) -> str:
        """Return a text with what the model writes after it.

        Args:
            text: the beginning, in ASCII.
            length: characters to write.
            temperature: how bold it is; 0 would always take the likeliest character.
            seed: another one writes another text.
        """
        generator = torch.Generator().manual_seed(seed)
        written = torch.tensor([list(text.encode("ascii"))])
        for _ in range(length):
            logits = self(written[:, -self.hparams.context :])[0, -1]
            drawn = torch.multinomial((logits / temperature).softmax(dim=0), 1, generator=generator)
            written = torch.cat([written, drawn[None]], dim=1)
        return bytes(written[0].tolist()).decode("ascii")

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW; its learning rate makes one cycle in the fit (Smith and Topin, 2017, arXiv:1708.07120)."""
        # See the digits example for eps.
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01, eps=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _losses(self, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:], reduction="none")

    def _assess(self, name: str, batch: Tensor) -> Tensor:
        loss = self._losses(batch).mean()
        # In bits per character, which can be compared with compression.
        bits = loss.detach() / math.log(2)
        self.log(f"{name}_bits", bits, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss
