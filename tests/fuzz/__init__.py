"""Random programs put through every step: right, or refused in one line; never wrong, never dead."""
