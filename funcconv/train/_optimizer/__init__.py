"""Optimizers: groups of parameters, factors of the learning rate, and what some optimizers need besides a gradient."""
