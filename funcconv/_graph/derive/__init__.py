"""Derivatives at the nodes of a graph, and by each use of its parameters."""
