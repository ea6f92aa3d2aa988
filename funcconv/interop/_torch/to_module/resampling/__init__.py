"""Resizing, blurs, pixel shuffles and windows of images on tensors."""
