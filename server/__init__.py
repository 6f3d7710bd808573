"""One aggregator process: rounds, aggregation, durability."""
