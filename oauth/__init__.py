"""An account comes, stays signed in, and leaves."""
