"""Other servers, as their own documentation has one write them."""
