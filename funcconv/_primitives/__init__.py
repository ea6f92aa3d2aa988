"""The maps that JAX differentiates: convolution and selection, and how they are computed."""
