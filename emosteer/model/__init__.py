"""A language model as emosteer sees it: where it comes from, its parts, and how it reads a dialogue."""
