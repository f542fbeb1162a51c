"""externalizer: make CRIU checkpoints of real processes succeed."""

__version__ = "0.1.0"
