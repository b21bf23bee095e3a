"""What a system's replies and likelihoods show."""
