"""How long `latentdiff --help` takes against `python -c "import torch"`, both warm.

    python benchmarks/help_time.py

The target is a quarter. A test holds the cause (torch is not imported); the time is only measured here.
"""

import statistics
import subprocess
import sys
import time

REPEATS = 7
COMMANDS = {
    "latentdiff --help": [sys.executable, "-m", "latentdiff.cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms the disk cache


if __name__ == "__main__":
    measured = {name: seconds(command) for name, command in COMMANDS.items()}
    for name, value in measured.items():
        print(f"{name:20s}{value:7.3f} s")
    print(f"{'ratio':20s}{measured['latentdiff --help'] / measured['import torch']:7.3f}")
