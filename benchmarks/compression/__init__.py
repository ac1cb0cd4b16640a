"""Accuracy at equal cost against peers, on Fashion-MNIST, from random weights, in the same epochs for everybody.

    python -m benchmarks.compression            # goes on with benchmarks/results/compression.jsonl
    python -m benchmarks.compression --quick    # every method once on a few images, to see that all of it runs

One JSON line a finished (network, method, target, seed), appended whole; lines that are there are not run again.
"""
