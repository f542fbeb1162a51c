"""The only package that knows criu: its options, images, logs and where it is."""
