"""What a job would be, before there is one: its tokens, time and cost, and its rows as training sees them."""
