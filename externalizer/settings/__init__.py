"""What users configure in files: read here, judged in plan."""
