"""Forms that are one product: of two matrices, or of spectra."""
