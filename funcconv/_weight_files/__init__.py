"""Files of weights that any library wrote, read as arrays by name."""
