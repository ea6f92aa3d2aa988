"""Forms that are matrix products: of windows that are gathered, or of whole images."""
