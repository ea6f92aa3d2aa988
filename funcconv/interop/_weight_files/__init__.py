"""Files of weights that other libraries wrote."""
