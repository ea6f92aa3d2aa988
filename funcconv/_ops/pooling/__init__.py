"""Pooling: windows, whole images and bins reduced to one number for each channel, and its inverse."""
