"""What every ingredient of AlphaQuant is worth: alone, and when it is missing from the whole."""
