"""Shapes and parameters of graphs, without evaluating anything."""
