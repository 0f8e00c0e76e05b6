"""Set-up of all tests."""

import os

# one thread a worker: the models are tiny, and two workers with two threads each get into each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
