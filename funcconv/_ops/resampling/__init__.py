"""Windows as arrays, pixels as channels, and images of other sizes."""
