"""Order: sort, topk, unique and their kin."""
