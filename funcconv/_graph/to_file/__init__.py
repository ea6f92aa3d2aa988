"""Graphs as JSON, and the names of functions in it."""
