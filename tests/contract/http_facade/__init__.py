"""The HTTP facade, as clients of the Compute API see it: the real application on a real database."""
