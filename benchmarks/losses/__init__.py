"""What the losses take beside other implementations, and two commits side by side."""
