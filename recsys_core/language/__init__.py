"""Language models as parts of recommenders: their weights, their tokens, and vectors of texts."""
