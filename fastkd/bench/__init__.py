"""Benchmarks: what each loss costs against every alternative, on the shapes that one has."""

SUMMARY = "Measure the losses: time and peak memory against every alternative that is installed."
