"""Spectra of symmetric maps: Krylov spaces, functions of matrices, deflation."""
