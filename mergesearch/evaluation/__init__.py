"""Weights to scores: collections, token plan, encoder, exact search, metrics and significance.

A text is tokenised once (`tokens`), encoded under the weights the model holds at the moment (`encoder`),
searched exactly without keeping embeddings (`search`, `backends/`), and scored per query (`judgements`,
`metrics/`). `pipeline.RetrievalEvaluator` runs all of it for every collection of a study.
"""
