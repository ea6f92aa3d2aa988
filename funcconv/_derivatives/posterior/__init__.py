"""Statistics from the curvature at the end of training: uncertainty of parameters, influence of training examples."""
