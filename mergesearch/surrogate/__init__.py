"""Which merge to evaluate next, from the embeddings of those evaluated: mathematics only, no search and no workers.

The embeddings of a merge vary smoothly with its coefficients. So those at unevaluated coefficients are predicted
as weighted sums of evaluated ones, with the same weights for every text (`kriging`), and the true metric is
computed on the predicted embeddings (`bank`). Re-rankers have no embeddings but logits of pairs, of which the same is
true (`pairs`). What is made of the scores is in `objective`, and the whole question in `screening`.

Notation of the package: n evaluated merges, C candidates, D coordinates, Q queries, N documents, E dimensions.
"""
