"""Arrays and what belongs to them: types, devices, random numbers, printing, NumPy and CuPy."""
