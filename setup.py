from setuptools import find_packages, setup

# kernels/ is a source root, not a package: a top-level package named "kernels" exists on PyPI.
setup(
    packages=[*find_packages(include=["fastkd", "fastkd.*"]), *find_packages("kernels")],
    package_dir={"fastkd_kernels": "kernels/fastkd_kernels"},
)
