"""Graphs and programs described and drawn."""
