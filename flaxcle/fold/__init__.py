"""BatchNorm folding: the kernel before a norm absorbs it, and the norm becomes the identity."""

from flaxcle.fold.norms import fold_batch_norm as fold_batch_norm
