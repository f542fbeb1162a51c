"""What people see on a terminal. The only package that imports rich."""
