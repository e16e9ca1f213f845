"""What runs on each host: make the host equal to its assignment, and show that it is."""
