"""What is learnt: losses, and the Lightning modules around the one forward."""
