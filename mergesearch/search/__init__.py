"""Search: which coefficients to evaluate next.

`space` turns a study file's `merge.coefficients` into a search space; `strategy` is the contract that every
strategy keeps; `strategies/` holds one file per strategy and `registry` finds them. Two bases do the common
work: `sampling` for Optuna's samplers that propose point by point, `population` for those that propose whole
generations. Strategies see trials and propose points; they evaluate, store and schedule nothing.
"""
