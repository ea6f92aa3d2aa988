"""How each operation of PyTorch is translated: one function for each, with PyTorch's arguments and defaults."""
