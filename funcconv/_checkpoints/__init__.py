"""Folders of checkpoints: written, read, and kept by rules."""
