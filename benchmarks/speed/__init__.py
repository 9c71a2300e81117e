"""Our speed and memory beside those of other programs, on the CPU."""
