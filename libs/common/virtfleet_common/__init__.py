"""What every Virtfleet part shares: states, the action and step tables, records, messages, bus, store, settings."""
