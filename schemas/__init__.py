"""What may come in from outside, one module for each counterpart. Frozen objects leave here; raw dicts never do."""
