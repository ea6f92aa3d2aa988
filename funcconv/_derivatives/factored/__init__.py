"""What is computed from the gradients of many examples as factors: norms, tangent kernels, Kronecker factors."""
