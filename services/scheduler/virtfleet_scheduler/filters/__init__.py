"""Which hosts may take a guest: one class per rule, offered as entry points `virtfleet.filters`.

Each is made with the settings, and keeps no state beside them.
"""
