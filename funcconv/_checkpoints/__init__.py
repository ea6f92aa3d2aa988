"""Folders of checkpoints: how they are written, read, and removed."""
