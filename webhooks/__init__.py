"""What loyalty programs call when something has changed on their side."""
