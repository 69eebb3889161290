"""``torch.ao``: quantisation, of which only what an unquantised model does is here."""
