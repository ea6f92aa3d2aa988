"""Helpers for all packages: errors, types, dtypes, files and sharding. Nothing here depends on convolution."""
