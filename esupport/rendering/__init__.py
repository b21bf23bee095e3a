"""Conversations as token ids and targets: templates, tree rows, masks, packing, loaders."""
