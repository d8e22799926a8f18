"""A small GPT on characters, in Flax Linen: token and position embeddings, then blocks.

x + attention(norm(x)), then x + mlp(norm(x)) with GELU (Radford et al. 2019), a last norm and a
dense layer. Invariant: the logits at a position depend on the tokens up to it alone.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .storage import load_weights
from .subject import Subject
from .text import TOKENS, test_text, training_text, windows

LENGTH = 128
WIDTH, LAYERS, HEADS = 128, 3, 4
BATCH = 64
CALIBRATION_WINDOWS, TEST_WINDOWS = 512, 1024
SEED = 0


class Block(nn.Module):
    """Attention to what came before, then a layer on each position."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(nn.LayerNorm(name="attention_norm")(x), mask=mask)
        hidden = nn.Dense(4 * WIDTH, name="expand")(nn.LayerNorm(name="mlp_norm")(x))
        return x + nn.Dense(WIDTH, name="project")(nn.gelu(hidden))


class GPT(nn.Module):
    """Tokens (N, length) to the logits (N, length, TOKENS) of the token that follows each."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        x = nn.Embed(TOKENS, WIDTH, name="tokens")(tokens)
        x = x + nn.Embed(LENGTH, WIDTH, name="positions")(positions)
        mask = nn.make_causal_mask(tokens)
        for number in range(LAYERS):
            x = Block(name=f"block{number}")(x, mask)
        return nn.Dense(TOKENS, name="classifier")(nn.LayerNorm(name="norm")(x))


def batches(text: np.ndarray, starts: np.ndarray) -> tuple[list[jax.Array], list[jax.Array]]:
    """Windows of the text in batches, and the tokens that follow."""
    parts = len(starts) // BATCH
    inputs, targets = windows(text, starts, LENGTH)
    return [jnp.asarray(x) for x in np.split(inputs, parts)], [
        jnp.asarray(y) for y in np.split(targets, parts)
    ]


def test_batches() -> tuple[list[jax.Array], list[jax.Array]]:
    """Windows from the held-out text, one after the other."""
    return batches(test_text(), LENGTH * np.arange(TEST_WINDOWS))


def load() -> Subject:
    """With the weights of `train_gpt.py`; calibrated on random windows of the training text."""
    text = training_text()
    rng = np.random.default_rng(SEED)
    starts = rng.integers(len(text) - LENGTH, size=CALIBRATION_WINDOWS)
    test, labels = test_batches()
    return Subject(
        name="gpt",
        fn=GPT().apply,
        variables=load_weights("gpt"),
        calibration=batches(text, starts)[0],
        test=test,
        labels=labels,
        metric="perplexity",
    )
