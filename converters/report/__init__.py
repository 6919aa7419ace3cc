"""One page of what a plan does: budget against accuracy, what is read and computed, what it costs, what changed."""
