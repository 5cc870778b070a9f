"""Dense tasks that share every image: what a suite is, the model it trains and how."""
