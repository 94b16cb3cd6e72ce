"""What timing needs: a clock, a model's flow alone, and what the device could do at best."""
