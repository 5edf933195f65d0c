"""What distinguishes runs: their settings, sizes, curves, scores and translations."""
