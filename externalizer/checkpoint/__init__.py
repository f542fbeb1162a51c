"""Dump and restore, and what the hook does at each of criu's stages."""
