"""Where windows lie, and arrays seen through them."""
