"""Layers that training needs: norms of activations and of kernels, and dropout."""
