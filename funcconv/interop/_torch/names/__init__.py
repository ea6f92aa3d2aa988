"""The names and orders of axes of a graph's arrays in PyTorch."""
