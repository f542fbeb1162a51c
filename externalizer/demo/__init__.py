"""The main job on a real example, with its programs."""
