"""A language model as a judge of replies: pairwise in both orders, on a rubric, and the swap test."""
