"""What Gorgias calls, and what agents see."""
