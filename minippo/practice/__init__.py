"""What practitioners need around PPO: `minippo train`, its options, and adapters of rewards."""
