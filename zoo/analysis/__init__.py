"""What is made of prices: models compared, plotted and explained, and sizes solved for. Never imports torch."""
