"""`python -m llm2enc`, which torchrun starts as `torchrun --nproc-per-node N -m llm2enc convert RECIPE`."""

from llm2enc.cli import main

main()
