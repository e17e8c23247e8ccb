"""Tests, a folder for each package of llm2enc; what they share is in `tests.support`."""

import os

# Before torch is imported, which reads it: workers beside each other, and the processes they start, share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
