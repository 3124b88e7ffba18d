"""What practitioners need around PPO: `minippo train`, and its options."""
