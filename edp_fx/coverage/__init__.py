"""Which models go through which stage: measured, one process a model, written down."""
