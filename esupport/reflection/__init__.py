"""How a draft becomes a preference pair: what is inferred of the person, the refined reply, and the filters."""
