"""When an answer is "novel": scores, thresholds, rules, and how good they are."""
