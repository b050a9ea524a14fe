"""What the two operators around HSTU's attention share: layer norm inside a kernel, dropout masks, sums over tokens, products."""
