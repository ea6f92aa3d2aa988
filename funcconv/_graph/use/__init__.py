"""Graphs evaluated, cut and differentiated."""
