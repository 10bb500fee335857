"""The three ways a credential travels: one file each, one shape."""
