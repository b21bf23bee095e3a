"""What the pages of this project share: their skeleton and look, how files are read for them, how plots become part of them."""
