"""How a check works: cases, observation, judgement, result."""
