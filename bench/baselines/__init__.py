"""What the figures are compared with. Nothing in here is part of the product or an example to follow."""
