"""From declared nodes to named rows."""
