"""Where results are kept, signed, and deleted when they are old."""
