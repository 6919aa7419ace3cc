"""How an answer is read and scored, as the published code of each benchmark does it. Pure functions of text."""
