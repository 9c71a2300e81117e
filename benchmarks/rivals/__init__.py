"""AlphaQuant and other quantizers side by side: same checkpoint, same tokens, one scorer."""
