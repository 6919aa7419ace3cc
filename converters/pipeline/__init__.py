"""A pipeline: one file says what is made from a model, and every step that was finished is not done again."""
