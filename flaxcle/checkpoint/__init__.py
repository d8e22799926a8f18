"""Checkpoints in and out: orbax directories and safetensors files, with spec and scales beside."""

from flaxcle.checkpoint.files import Checkpoint as Checkpoint
from flaxcle.checkpoint.files import load_checkpoint as load_checkpoint
from flaxcle.checkpoint.files import save_checkpoint as save_checkpoint
