"""Normalization of activations and of kernels."""
