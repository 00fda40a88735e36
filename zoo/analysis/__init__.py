"""Compare, plot and explain prices, and solve for sizes. Never imports torch."""
