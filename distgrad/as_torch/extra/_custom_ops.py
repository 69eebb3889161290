"""Registration of compiled operators, of which there are none."""
