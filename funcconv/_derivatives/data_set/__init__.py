"""Curvature over a data set: products that read all batches."""
