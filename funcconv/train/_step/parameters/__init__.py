"""Averages of the parameters, and the loss of a step as a function of other parameters."""
