"""Dead channels: what they are, and how to zero them."""

from flaxcle.prune.dead import prune_dead_channels as prune_dead_channels
