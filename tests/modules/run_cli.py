"""The command line as a script that Lightning can start once a process."""

import sys

import torch

from restorevar.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
