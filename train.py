"""What `accelerate launch` runs: train.py CONFIG [key=value ...]."""

import sys

from latentdiff.training.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
