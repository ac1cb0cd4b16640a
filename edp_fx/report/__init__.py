"""Pages a person looks at: the channel graph of a model, and a training run."""
