"""What a graph is declared with."""
