"""`python -m mlxrt`."""

from mlxrt.cli import main

main()
