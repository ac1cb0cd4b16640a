"""Is it still the same function? Two networks compared; pruning against masked execution."""
