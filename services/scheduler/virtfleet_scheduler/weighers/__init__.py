"""Which of the hosts that may take a guest should: one class per view, offered as entry points `virtfleet.weighers`."""
