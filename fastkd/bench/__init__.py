"""Benchmarks: what each loss costs against every alternative, on the shapes that one has."""
