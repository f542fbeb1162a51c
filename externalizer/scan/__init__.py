"""Engines that turn a pid into a Snapshot."""
