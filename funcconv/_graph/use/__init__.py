"""The class of graphs, and its parts."""
