"""Who evaluates trials: `TrialEvaluator`, run in this process or as Ray actors."""
