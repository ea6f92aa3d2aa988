"""JAX primitives for convolution, selection and reduction of windows, with their derivatives and lowerings."""
