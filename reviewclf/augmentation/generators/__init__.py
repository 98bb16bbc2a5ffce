"""Who writes: language models, or a file of candidates that one wrote elsewhere."""

from reviewclf.augmentation.generators.base import Generator, Written
from reviewclf.augmentation.generators.make import make_generator
from reviewclf.augmentation.generators.recorded import RecordedGenerator

__all__ = ["Generator", "RecordedGenerator", "Written", "make_generator"]
