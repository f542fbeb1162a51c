"""The commands, one file each, and a thin main."""
