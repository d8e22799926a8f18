"""Clip exposure: constant bounds become leaves, one value per channel."""

from flaxcle.clips.expose import COLLECTION as COLLECTION
from flaxcle.clips.expose import expose_clips as expose_clips
