"""What labels say, apart from everything that needs torch."""

IGNORED = -100
"""Label of a token that is not learned (torch's default)."""
