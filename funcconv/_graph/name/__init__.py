"""From declared nodes to named rows, and to text."""
