"""What `gradoscope.watch` is made of: the budget, one look at a step, what the loop called, the training rebuilt."""
