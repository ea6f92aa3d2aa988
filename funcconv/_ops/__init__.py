"""Pure functions of parameters and arrays."""
