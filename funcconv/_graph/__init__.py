"""Networks: declared, named, used."""
