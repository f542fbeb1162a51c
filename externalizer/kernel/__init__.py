"""One-shot primitives over the kernel's interfaces."""
