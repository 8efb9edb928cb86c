"""The parts of `guardrail eval`: each measures one thing or shows it; `trainer.evaluate` joins them."""
