"""Graphs as modules of PyTorch: each layer and each function as PyTorch computes it."""
